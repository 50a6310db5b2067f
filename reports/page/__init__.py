"""What a page is made of: model, tables, format, badges, CSV, glossary, figures, templates."""
