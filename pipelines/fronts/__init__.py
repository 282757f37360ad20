"""Fronts for people and for programs: rows, tables, pictures, pages."""
