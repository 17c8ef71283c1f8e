// Nothing of it is used by the functions that are checked.
