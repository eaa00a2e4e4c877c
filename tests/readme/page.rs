//! A page of Markdown: its tables and its fenced blocks.

use std::path::{Path, PathBuf};

pub(crate) struct Page {
    path: PathBuf,
    text: String,
}

/// A fenced block.
pub(crate) struct Block {
    /// What stands behind the opening fence.
    pub(crate) info: String,
    pub(crate) text: String,
    /// Nothing but empty lines stands between the block before and this one.
    pub(crate) follows: bool,
}

impl Page {
    pub(crate) fn open(path: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { path, text }
    }

    /// The cells of every table whose head's first cell is `first`, without heads.
    pub(crate) fn rows(&self, first: &str) -> Vec<Vec<String>> {
        let mut rows = Vec::new();
        let mut lines = self.text.lines().peekable();
        while let Some(line) = lines.next() {
            if !lines.peek().is_some_and(|next| next.starts_with("|---")) || cells(line)[0] != first {
                continue;
            }
            lines.next();
            while let Some(row) = lines.next_if(|line| line.starts_with('|')) {
                rows.push(cells(row));
            }
        }
        assert!(!rows.is_empty(), "{}: no table that begins with `{first}`", self.path.display());
        rows
    }

    pub(crate) fn blocks(&self) -> Vec<Block> {
        let mut blocks: Vec<Block> = Vec::new();
        let mut follows = false;
        let mut lines = self.text.lines();
        while let Some(line) = lines.next() {
            if let Some(info) = line.strip_prefix("```") {
                let body: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
                let text = body.iter().flat_map(|line| [*line, "\n"]).collect();
                blocks.push(Block { info: info.to_owned(), text, follows });
                follows = true;
            } else if !line.is_empty() {
                follows = false;
            }
        }
        blocks
    }

    /// The files that the page's relative links name.
    fn links(&self) -> impl Iterator<Item = PathBuf> {
        let targets = self.text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        let files = targets.filter(|target| !target.contains("://") && !target.starts_with('#'));
        files.map(|target| self.path.parent().unwrap().join(target.split('#').next().unwrap()))
    }
}

/// The text of a cell that is code alone.
pub(crate) fn code(cell: &str) -> Option<&str> {
    cell.strip_prefix('`')?.strip_suffix('`').filter(|inner| !inner.contains('`'))
}

/// All that stands in backticks.
pub(crate) fn codes(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

fn cells(line: &str) -> Vec<String> {
    let line = line.replace(r"\|", "\u{0}");
    let line = line.trim().trim_start_matches('|').trim_end_matches('|');
    line.split('|').map(|cell| cell.trim().replace('\u{0}', "|")).collect()
}

#[test]
fn every_link_leads_to_a_file() {
    for page in [
        "README.md",
        "docs/configuration.md",
        "docs/errors.md",
        "docs/record.md",
        "docs/architecture.md",
        "docs/observability.md",
    ] {
        let page = Page::open(page);
        for file in page.links() {
            assert!(file.exists(), "{}: {} does not exist", page.path.display(), file.display());
        }
    }
}
