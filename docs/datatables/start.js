for (const table of document.querySelectorAll(".rows table"))
  new DataTable(table, { order: [], autoWidth: false, paging: table.rows.length > 12, searching: table.rows.length > 12, info: false });
