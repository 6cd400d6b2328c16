//! ARCHITECTURE.md stays a map that can be read in one sitting, and the files that it names are there.

use std::path::Path;

/// Its lines at most.
const LONGEST: usize = 150;

/// Where what it names may lie.
const ROOTS: [&str; 2] = ["src", ""];

/// What is wrong with the map `text` of the project in this folder, as `ARCHITECTURE.md:line: what and why`.
pub(crate) fn broken(text: &str, root: &Path) -> Vec<String> {
    let mut broken = Vec::new();
    let lines = text.lines().count();
    if lines > LONGEST {
        broken.push(format!(
            "ARCHITECTURE.md:{lines}: more than {LONGEST} lines: what is deep goes to docs/design"
        ));
    }
    for (index, line) in text.lines().enumerate() {
        for missing in files_in(line).filter(|file| !is_there(file, root)) {
            broken.push(format!("ARCHITECTURE.md:{}: `{missing}` does not exist", index + 1));
        }
    }
    broken
}

/// The files of this project that a line names with their folder; a bare name is beside one of those.
fn files_in(line: &str) -> impl Iterator<Item = &str> {
    line.split(|sign: char| !(sign.is_ascii_alphanumeric() || "/._-".contains(sign)))
        .filter(|word| word.contains('/') && [".rs", ".md"].iter().any(|ending| word.ends_with(ending)))
}

fn is_there(file: &str, root: &Path) -> bool {
    ROOTS.iter().any(|folder| root.join(folder).join(file).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_names_what_is_not_there_and_says_when_it_is_too_long() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let text = "see `rpc/web.rs` (`page`), `rpc/nowhere.rs` and [x](docs/design/reload.md)\n│ worker/boot.rs ─▶ gone/away.rs";
        assert_eq!(
            broken(text, root),
            [
                "ARCHITECTURE.md:1: `rpc/nowhere.rs` does not exist",
                "ARCHITECTURE.md:2: `gone/away.rs` does not exist"
            ]
        );
        assert_eq!(broken(&"x\n".repeat(LONGEST), root), [""; 0]);
        let too_long = broken(&"x\n".repeat(LONGEST + 1), root);
        assert_eq!(too_long.len(), 1, "{too_long:?}");
    }
}
