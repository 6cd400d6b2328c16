//! No circles between the files of a directory, and a room that stands alone imports nothing of its neighbours.
//!
//! A file depends on another one where it names that one in a path, or where it calls a method that the other one adds to a type which
//! several files add methods to. Files that are compiled for tests alone don't count, nor do the tests at the end of a file.

use std::collections::{BTreeMap, BTreeSet};

use crate::imports::{module_of, paths};
use crate::source::{Source, words};

/// The directories under check, and the types that several files of each add methods to.
pub(crate) const WITHOUT_CIRCLES: &[(&str, &[&str])] = &[("src/supervisor/", &["Supervisor"])];

/// Rooms that import nothing of the directory around them.
pub(crate) const ALONE: &[&str] = &["src/supervisor/policy/"];

/// A file depends on another one, by a path or a method in the line with this index.
struct Edge {
    from: String,
    to: String,
    at: usize,
    what: String,
}

/// Every circle between files of the directory, named once, with the line that each arrow of it comes from.
pub(crate) fn circles(sources: &[Source], directory: &str, spread: &[&str]) -> Vec<String> {
    let edges = edges(sources, directory, spread);
    let mut arrows: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for edge in &edges {
        arrows.entry(&edge.from).or_default().insert(&edge.to);
    }
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    for file in arrows.keys() {
        if seen.contains(file) {
            continue;
        }
        let ahead = reached(&arrows, file);
        let circle: Vec<&str> =
            ahead.iter().copied().filter(|other| reached(&arrows, other).contains(file)).collect();
        if circle.is_empty() {
            continue;
        }
        seen.extend(circle.iter().copied());
        let within = |path: &str| circle.contains(&path);
        let arrows = edges.iter().filter(|edge| within(&edge.from) && within(&edge.to));
        let arrows: Vec<String> = arrows
            .map(|Edge { from, to, at, what }| format!("\n  {from}:{}: `{what}` leads to {to}", at + 1))
            .collect();
        found.push(format!("{} files of {directory} form a circle: {}", circle.len(), arrows.concat()));
    }
    found
}

/// Where a file of the room names something of the directory around it.
pub(crate) fn not_alone(sources: &[Source], room: &str) -> Vec<String> {
    let around = &room[..room.trim_end_matches('/').rfind('/').map_or(0, |at| at + 1)];
    let edges = edges(sources, around, &[]);
    let outside = |edge: &&Edge| edge.from.starts_with(room) && !edge.to.starts_with(room);
    edges
        .iter()
        .filter(outside)
        .map(|edge| {
            format!(
                "{}:{}: `{}` leads to {}, and {room} imports nothing of {around}",
                edge.from,
                edge.at + 1,
                edge.what,
                edge.to
            )
        })
        .collect()
}

/// The files that can be reached from one, itself only in a circle.
fn reached<'a>(arrows: &BTreeMap<&'a str, BTreeSet<&'a str>>, from: &str) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    let mut next: Vec<&str> = arrows.get(from).into_iter().flatten().copied().collect();
    while let Some(file) = next.pop() {
        if found.insert(file) {
            next.extend(arrows.get(file).into_iter().flatten().copied());
        }
    }
    found
}

fn edges(sources: &[Source], directory: &str, spread: &[&str]) -> Vec<Edge> {
    let for_tests: BTreeSet<Vec<String>> = sources.iter().flat_map(modules_for_tests).collect();
    let is_for_tests = |module: &[String]| (1..=module.len()).any(|end| for_tests.contains(&module[..end]));
    let sources: Vec<Source> = sources
        .iter()
        .filter(|source| source.path.starts_with(directory) && !is_for_tests(&module_of(&source.path)))
        .map(without_tests)
        .collect();
    let files: BTreeMap<Vec<String>, &str> =
        sources.iter().map(|source| (module_of(&source.path), source.path.as_str())).collect();
    let mut edges = Vec::new();
    for source in &sources {
        for (at, path) in paths_in(source, |module| files.contains_key(module)) {
            let owner = (1..=path.len()).rev().find_map(|end| files.get(&path[..end]));
            if let Some(to) = owner.filter(|to| **to != source.path) {
                edges.push(Edge {
                    from: source.path.clone(),
                    to: (*to).to_owned(),
                    at,
                    what: path.join("::"),
                });
            }
        }
    }
    for name in spread {
        edges.extend(calls(&sources, name));
    }
    edges
}

/// Calls of methods that another file adds to the type.
fn calls(sources: &[Source], name: &str) -> Vec<Edge> {
    let mut methods: BTreeMap<&str, &str> = BTreeMap::new();
    for source in sources {
        for (start, body) in impls(&source.code, name) {
            let words: Vec<(usize, &str)> = words(body).collect();
            for pair in words.windows(2) {
                if pair[0].1 == "fn" && depth(&source.code[start..start + pair[0].0]) == 1 {
                    methods.insert(pair[1].1, &source.path);
                }
            }
        }
    }
    let mut edges = Vec::new();
    for source in sources {
        for (start, body) in impls(&source.code, name) {
            let words: Vec<(usize, &str)> = words(body).collect();
            for pair in words.windows(2) {
                let ((at, on), (called, method)) = (pair[0], pair[1]);
                let between = body[at + on.len()..called].trim();
                let is_call = matches!(on, "self" | "Self") && matches!(between, "." | "::");
                if let (true, Some(to)) = (is_call, methods.get(method).filter(|to| **to != source.path)) {
                    let line = source.code[..start + at].matches('\n').count();
                    edges.push(Edge {
                        from: source.path.clone(),
                        to: (*to).to_owned(),
                        at: line,
                        what: format!("{on}{between}{method}"),
                    });
                }
            }
        }
    }
    edges
}

/// What each `impl NAME {` of the code holds, from its brace on, with the byte where that begins.
fn impls<'a>(code: &'a str, name: &str) -> Vec<(usize, &'a str)> {
    let head = format!("impl {name} {{");
    let starts = code.match_indices(&head).map(|(at, _)| at + head.len() - 1);
    starts.map(|start| (start, &code[start..start + closed(&code[start..])])).collect()
}

/// Braces that are open at the end of the code.
fn depth(code: &str) -> usize {
    code.matches('{').count().saturating_sub(code.matches('}').count())
}

/// Where the brace that the code begins with is closed.
fn closed(code: &str) -> usize {
    let mut depth = 0_usize;
    for (at, c) in code.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    code.len()
}

/// Paths that begin at the crate's root, above the file, in it, or with a module of it: each as a path from the root, with the index
/// of its line.
fn paths_in(source: &Source, is_file: impl Fn(&[String]) -> bool) -> Vec<(usize, Vec<String>)> {
    let (module, code) = (module_of(&source.path), &source.code);
    let mut found = Vec::new();
    for (at, word) in words(code) {
        let below = [module.clone(), vec![word.to_owned()]].concat();
        let leads = code[at + word.len()..].trim_start().starts_with("::");
        let is_start = !code[..at].trim_end().ends_with("::");
        if !is_start || !(matches!(word, "crate" | "super" | "self") || leads && is_file(&below)) {
            continue;
        }
        let line = code[..at].matches('\n').count();
        for path in paths(&mut &code[at..]) {
            let supers = path.iter().take_while(|part| *part == "super").count();
            let path = match path[0].as_str() {
                "crate" => path[1..].to_vec(),
                "self" => [&module[..], &path[1..]].concat(),
                _ => [&module[..module.len().saturating_sub(supers)], &path[supers..]].concat(),
            };
            found.push((line, path));
        }
    }
    found
}

/// The modules that a source declares for tests alone.
fn modules_for_tests(source: &Source) -> Vec<Vec<String>> {
    let module = module_of(&source.path);
    let declared = source.code.split("#[cfg(test)]").skip(1).filter_map(|rest| {
        let rest = rest.trim_start().strip_prefix("mod ")?;
        let (name, after) = rest.split_at(rest.find(|c: char| !c.is_alphanumeric() && c != '_')?);
        after.starts_with(';').then(|| name.to_owned())
    });
    declared.map(|name| [module.clone(), vec![name]].concat()).collect()
}

/// A source without its tests at the end, and without what only says who may see something.
fn without_tests(source: &Source) -> Source {
    let end = source.code.find("#[cfg(test)]\nmod tests {").unwrap_or(source.code.len());
    let mut code = source.code[..end].to_owned();
    while let Some(at) = code.find("pub(") {
        let to = at + code[at..].find(')').map_or(code.len() - at, |to| to + 1);
        code.replace_range(at..to, &" ".repeat(to - at));
    }
    Source { path: source.path.clone(), text: source.text.clone(), code }
}

#[cfg(test)]
fn tree(files: &[(&str, &str)]) -> Vec<Source> {
    files.iter().map(|(path, text)| Source::new(&format!("src/boss/{path}"), text)).collect()
}

#[test]
fn circles_between_files_are_found() {
    let pair = |first: &str, second: &str| {
        circles(&tree(&[("a.rs", first), ("b.rs", second)]), "src/boss/", &["Boss"])
    };
    for (first, second) in [
        ("use super::b::B;", "use super::a::A;"),
        ("use crate::boss::{x, b};", "use crate::boss::a::{self, A};"),
        ("fn f() { super::b::g() }", "fn g() { crate::boss::a::f(); }"),
        ("impl Boss { fn f(&self) { self.g(); } }", "impl Boss { fn g(&self) { if x { Self::f(self) } } }"),
        ("use super::b::B; impl Boss { fn f(&self) {} }", "impl Boss { fn g(&self) { self.f(); } }"),
    ] {
        let found = pair(first, second);
        assert_eq!(found.len(), 1, "{first}  {second}: {found:?}");
    }
    for (first, second) in [
        ("use super::b::B;", "use super::c::C;"),
        ("use super::b::B;", "pub(in crate::boss::a) fn f() {}"),
        ("use super::b::B;", "// use super::a::A;\nlet text = \"super::a\";"),
        ("use super::b::B;", "#[cfg(test)]\nmod tests { use super::super::a::A; }"),
        ("impl Boss { fn f(&self) { self.g(); } }", "impl Boss { fn g(&self) { other.f(); } }"),
        ("impl Boss { fn f(&self) { self.g(); } }", "impl Clerk { fn g(&self) { self.f(); } }"),
    ] {
        assert_eq!(pair(first, second), [""; 0], "{first}  {second}");
    }
}

#[test]
fn a_circle_leads_through_any_number_of_files_and_rooms_and_is_named_once() {
    let files = [
        ("mod.rs", "mod a; mod room; use a::A;"),
        ("a.rs", "use super::room::b::B;"),
        ("room/mod.rs", "pub(super) mod b; pub(super) mod c;"),
        ("room/b.rs", "use super::c::C;"),
        ("room/c.rs", "\nuse crate::boss::a::A;"),
        ("room/free.rs", "use super::b::B; use crate::boss::a::A;"),
    ];
    let found = circles(&tree(&files), "src/boss/", &[]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("3 files of src/boss/ form a circle: "), "{found:?}");
    assert!(found[0].contains("src/boss/room/c.rs:2: `boss::a::A` leads to src/boss/a.rs"), "{found:?}");

    let through_the_door = [("mod.rs", "mod a; pub use a::A;"), ("a.rs", "use super::A;")];
    assert_eq!(
        circles(&tree(&through_the_door), "src/boss/", &[]).len(),
        1,
        "a file that imports from its own door"
    );
    let in_tests = [
        ("mod.rs", "mod a;\n#[cfg(test)]\nmod proofs;\nuse a::A;"),
        ("a.rs", ""),
        ("proofs.rs", "use super::x;"),
    ];
    assert_eq!(circles(&tree(&in_tests), "src/boss/", &[]), [""; 0]);
}

#[test]
fn a_room_that_stands_alone_and_imports_its_neighbours_is_found() {
    let of = |text| {
        not_alone(
            &tree(&[("room/a.rs", text), ("room/b.rs", ""), ("c.rs", "use super::room::a;")]),
            "src/boss/room/",
        )
    };
    for text in ["use crate::boss::c::C;", "use super::super::c;", "\nfn f() { crate::boss::c::f() }"] {
        assert_eq!(of(text).len(), 1, "{text}");
    }
    for text in ["use super::b::B;", "use crate::sys::c;", "#[cfg(test)]\nmod tests { use crate::boss::c; }"]
    {
        assert_eq!(of(text), [""; 0], "{text}");
    }
}
