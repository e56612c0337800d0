"""What others passed or wrote, checked: values and JSON files. Imports nothing of the package."""
