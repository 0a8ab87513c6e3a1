//! What a person reads at a terminal, where a pipe gets JSON. Pure.

/// A table: each row's cells in columns, two blanks between them.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let head: Vec<String> = head.iter().map(|&cell| cell.to_owned()).collect();
    let all: Vec<&Vec<String>> = [&head].into_iter().chain(rows).collect();
    let width = |column: usize| all.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate().map(|(n, cell)| format!("{cell:<width$}", width = width(n).unwrap_or(0)));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    all.iter().map(|row| line(row)).collect::<Vec<_>>().join("\n")
}

/// Text of several lines as one, without what a terminal would obey, as `ps` prints it.
pub fn one_line(text: &str) -> String {
    let lines = text.split('\n').map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join("; ").replace(char::is_control, "?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_no_line_ends_in_blanks() {
        let rows = [vec!["a".to_owned(), "b".to_owned()], vec!["long".to_owned(), String::new()]];
        assert_eq!(table(&["X", "WHAT"], &rows), "X     WHAT\na     b\nlong");
    }

    #[test]
    fn several_lines_become_one_that_moves_no_cursor() {
        assert_eq!(one_line("cannot do it\n  because\n\n"), "cannot do it; because");
        assert_eq!(one_line("no \x1b[2J, no\rother"), "no ?[2J, no?other");
    }
}
