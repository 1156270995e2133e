"""Examples of a task: files of many formats as a `datasets.Dataset`, whose columns are named by roles."""
