// Empty: the checked functions use nothing from this header.
