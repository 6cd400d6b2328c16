//! The source keeps to its layout: imports point downwards, `unsafe` stays in `sys` and explained, files stay short,
//! tests wait for events.
//!
//! `imports` holds the import rule, `circles` finds files that depend on each other, `map` reads ARCHITECTURE.md, `source` reads Rust far
//! enough to tell code from comments and text. Each check is a function over sources, so that it is shown here to find what it looks
//! for before it is let loose on the tree.

mod circles;
mod imports;
mod map;
mod source;

use source::{Source, rust_files};

/// The lines that a file in `src` may have.
const LONGEST_FILE: usize = 600;

/// Each way in which the sources leave the layout, as `path:line: what and why`.
fn broken_rules(sources: &[Source]) -> Vec<String> {
    let mut broken = Vec::new();
    for source in sources {
        if source.path.starts_with("src/") {
            broken.extend(imports::broken(source));
            broken.extend(unsafe_code(source));
            broken.extend(length(source));
        }
        if source.path.starts_with("tests/") {
            broken.extend(sleeps(source));
        }
        if source.path.starts_with("benches/") {
            broken.extend(unsafe_code(source));
        }
    }
    for (directory, spread) in circles::WITHOUT_CIRCLES {
        broken.extend(circles::circles(sources, directory, spread));
    }
    for room in circles::ALONE {
        broken.extend(circles::not_alone(sources, room));
    }
    broken
}

/// A program that counts allocations is the allocator, and that trait is unsafe to implement.
const COUNTS_ALLOCATIONS: &str = "benches/allocations.rs";

fn unsafe_code(source: &Source) -> Vec<String> {
    let in_sys = source.path.starts_with("src/sys/")
        || source.path == "src/sys.rs"
        || source.path == COUNTS_ALLOCATIONS;
    let mut broken = Vec::new();
    for (index, code) in source.code.lines().enumerate() {
        let allowed = source::has_word(code, "unsafe_code");
        let used = source::has_word(code, "unsafe");
        if (used || allowed) && !in_sys {
            broken.push(source.at(index, "`unsafe` belongs in src/sys: wrap it there, and call that"));
        } else if used && !is_explained(source, index) {
            broken.push(
                source
                    .at(index, "`unsafe` without a `// SAFETY:` comment directly above: say why it is sound"),
            );
        }
    }
    broken
}

/// True if a comment with the reason stands directly above the statement that the line belongs to.
fn is_explained(source: &Source, index: usize) -> bool {
    let text: Vec<&str> = source.text.lines().take(index).map(str::trim).collect();
    let code: Vec<&str> = source.code.lines().take(index).map(str::trim).collect();
    for (above, code) in
        text.iter().zip(&code).rev().map(|(text, code)| (*text, *code)).skip_while(|(_, code)| {
            // An attribute, or the beginning of the same statement.
            code.starts_with('#') || !(code.is_empty() || code.ends_with([';', '{', '}', ',']))
        })
    {
        if !above.starts_with("//") || !code.is_empty() {
            return false;
        }
        if above.contains("SAFETY:") || above.contains("# Safety") {
            return true;
        }
    }
    false
}

fn length(source: &Source) -> Vec<String> {
    let lines = source.text.lines().count();
    if lines <= LONGEST_FILE {
        return Vec::new();
    }
    vec![
        source.at(
            LONGEST_FILE,
            &format!("{lines} lines, a file has at most {LONGEST_FILE}: find its second job"),
        ),
    ]
}

fn sleeps(source: &Source) -> Vec<String> {
    let asleep = |code: &str| {
        let bare: String = code.split_whitespace().collect();
        bare.contains("thread::sleep") || source::has_word(code, "sleep") && bare.contains("sleep(")
    };
    let lines = source.code.lines().enumerate().filter(|(_, code)| asleep(code));
    lines.map(|(index, _)| source.at(index, "a test that sleeps: wait for the event instead")).collect()
}

#[test]
fn the_tree_keeps_to_the_layout() {
    let sources: Vec<Source> = ["src", "tests", "benches"].into_iter().flat_map(rust_files).collect();
    let in_src: Vec<&Source> = sources.iter().filter(|source| source.path.starts_with("src/")).collect();
    assert!(in_src.len() >= 10, "expected the sources of a whole project, found {} files", in_src.len());
    assert!(in_src.iter().any(|source| source.path == "src/lib.rs"), "src/lib.rs was not read");
    assert!(sources.iter().any(|source| source.path == "tests/layout/main.rs"), "this file was not read");
    for (directory, _) in circles::WITHOUT_CIRCLES {
        let files = in_src.iter().filter(|source| source.path.starts_with(directory)).count();
        assert!(files >= 10, "{directory} is to have no circles, and has {files} files");
    }
    for room in circles::ALONE {
        assert!(in_src.iter().any(|source| source.path.starts_with(room)), "{room} has no files");
    }
    let imports: usize = in_src.iter().map(|source| imports::between_modules(source).len()).sum();
    assert!(imports > 0, "no module seems to import another, so imports are not recognised");

    let broken = broken_rules(&sources);
    assert!(broken.is_empty(), "the source leaves its layout:\n{}", broken.join("\n"));
}

#[test]
fn the_map_can_be_read_in_one_sitting_and_names_files_that_are_there() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("ARCHITECTURE.md")).expect("the map is there");
    assert_eq!(map::broken(&text, root), [""; 0]);
}

#[test]
fn every_exception_to_the_import_rule_is_in_use() {
    let used: Vec<(String, String)> = rust_files("src").iter().flat_map(imports::between_modules).collect();
    for (from, to, reason) in imports::PEERS {
        assert!(
            used.iter().any(|(user, owner)| user == from && owner == to),
            "nothing in {from} imports {to} any more ({reason}): take the exception out"
        );
    }
}

#[test]
fn unsafe_code_outside_of_sys_is_found() {
    for text in [
        "fn f() { unsafe { g() } }",
        "// SAFETY: explained, but in the wrong place.\nunsafe impl Send for X {}",
        "#![allow(unsafe_code)]",
    ] {
        let broken = unsafe_code(&Source::new("src/worker/pool.rs", text));
        assert_eq!(broken.len(), 1, "{text}: {broken:?}");
    }
    let words = "// unsafe\nlet text = \"unsafe\"; let unsafely = r#\"unsafe\"#; /* unsafe */";
    assert_eq!(unsafe_code(&Source::new("src/worker/pool.rs", words)), [""; 0]);
}

#[test]
fn unsafe_code_without_a_reason_is_found() {
    for text in [
        "unsafe { f() }",
        "// A comment without a reason.\nunsafe { f() }",
        "// SAFETY: of something else.\nlet a = 1;\nunsafe { f() }",
        "// SAFETY: of something else.\n\nunsafe { f() }",
        "// SAFETY: of the first.\nunsafe impl Send for X {}\nunsafe impl Sync for X {}",
        "let a = 1; // SAFETY: beside, not above\nunsafe { f() }",
        "\"// SAFETY: text\";\nunsafe { f() }",
    ] {
        let broken = unsafe_code(&Source::new("src/sys/memory.rs", text));
        assert_eq!(broken.len(), 1, "{text}: {broken:?}");
    }
    for text in [
        "// SAFETY: it is.\nunsafe { f() }",
        "// SAFETY: it is,\n// at length.\nlet x = unsafe { f() };",
        "// SAFETY: it is.\nlet longer_than_a_line =\n    unsafe { f() };",
        "/// Does it.\n///\n/// # Safety\n///\n/// Only at night.\n#[inline]\npub unsafe fn f() {}",
    ] {
        assert_eq!(unsafe_code(&Source::new("src/sys/memory.rs", text)), [""; 0], "{text}");
    }
}

#[test]
fn a_file_that_is_too_long_is_found() {
    let longest = "\n".repeat(LONGEST_FILE);
    assert_eq!(length(&Source::new("src/lib.rs", &longest)), [""; 0]);
    assert_eq!(length(&Source::new("src/lib.rs", &(longest + "\n"))).len(), 1);
}

#[test]
fn a_test_that_sleeps_is_found() {
    for text in
        ["std::thread::sleep(TIME);", "use std::thread::sleep;\nsleep(TIME);", "thread :: sleep (TIME);"]
    {
        assert!(!sleeps(&Source::new("tests/calls.rs", text)).is_empty(), "{text}");
    }
    let calls = "// thread::sleep(TIME)\ncall(\"sleep\", \"thread::sleep(TIME)\"); let asleep = f(x);";
    assert_eq!(sleeps(&Source::new("tests/calls.rs", calls)), [""; 0]);
}
