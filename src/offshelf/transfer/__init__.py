"""How a backbone is put on a task; one file a method; scikit-learn estimators."""
