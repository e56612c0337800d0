"""Reports: pages with plots, Markdown tables, figures as people read them."""
