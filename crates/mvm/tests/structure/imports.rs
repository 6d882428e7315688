//! The imports between a crate's modules.

use petgraph::algo::tarjan_scc;
use petgraph::graphmap::DiGraphMap;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use syn::visit::{self, Visit};
use syn::{Attribute, Item, ItemMod, ItemUse, Path as SynPath, UseTree, Visibility};

/// A crate's modules. Each has a file of its own; a module without a file is part of the one around
/// it.
pub struct Crate {
    pub name: String,
    /// The modules by path: `jobs::run`; the crate's root is empty.
    pub modules: BTreeMap<String, Module>,
}

/// A module.
pub struct Module {
    pub items: Vec<Item>,
    /// The re-exports: a name, and the path of the item that it names.
    exports: Vec<(String, Vec<String>)>,
    /// The paths that the code names.
    named: Vec<Vec<String>>,
}

impl Crate {
    /// Reads the crate in this folder.
    pub fn read(dir: &Path) -> Crate {
        let name = dir.file_name().expect("a name").to_str().expect("a name").to_owned();
        let root = ["src/lib.rs", "src/main.rs"].map(|at| dir.join(at));
        let root = root.iter().find(|path| path.exists()).expect("a root").clone();
        let mut modules = BTreeMap::new();
        read_module(&root, &dir.join("src"), String::new(), &mut modules);
        Crate { name, modules }
    }

    /// Returns the modules that this module imports.
    fn imports(&self, of: &str) -> BTreeSet<String> {
        let named = self.modules[of].named.iter();
        named.filter_map(|path| self.owner(path, 0)).filter(|to| to != of).collect()
    }

    /// Returns the module that defines the item at this path from the crate's root.
    fn owner(&self, path: &[String], depth: usize) -> Option<String> {
        let (at, rest) = (0..=path.len()).rev().find_map(|count| {
            let module = path[..count].join("::");
            self.modules.contains_key(&module).then(|| (module, &path[count..]))
        })?;
        let export = |name: &String| {
            let exports = &self.modules[&at].exports;
            exports.iter().find(|(exported, _)| exported == name).map(|(_, to)| to)
        };
        match rest.first().and_then(export) {
            Some(to) if depth < 8 => self.owner(to, depth + 1).or(Some(at)),
            _ => Some(at),
        }
    }

    fn graph(&self) -> DiGraphMap<&str, ()> {
        let mut graph = DiGraphMap::new();
        for module in self.modules.keys() {
            for to in self.imports(module) {
                let (to, _) = self.modules.get_key_value(&to).expect("a module");
                graph.add_edge(module.as_str(), to.as_str(), ());
            }
        }
        graph
    }

    /// Returns the circles: lists of modules that import each other, each sorted.
    pub fn circles(&self) -> Vec<Vec<String>> {
        let parts = tarjan_scc(&self.graph()).into_iter().filter(|part| part.len() > 1);
        let mut circles: Vec<Vec<String>> = parts
            .map(|part| {
                let mut names: Vec<String> = part.into_iter().map(str::to_owned).collect();
                names.sort();
                names
            })
            .collect();
        circles.sort();
        circles
    }

    /// Returns the imports among these modules, one line each.
    pub fn edges_among(&self, modules: &[String]) -> Vec<String> {
        let edges = |from: &String| {
            let to: Vec<String> =
                self.imports(from).into_iter().filter(|to| modules.contains(to)).collect();
            (!to.is_empty()).then(|| format!("  {from} -> {}", to.join(", ")))
        };
        modules.iter().filter_map(edges).collect()
    }
}

/// Returns whether an item is compiled for tests only.
pub fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let cfg = attribute.path().is_ident("cfg") && {
            let text = quote(attribute);
            text.contains("test") && !text.contains("not")
        };
        cfg || attribute.path().is_ident("test")
    })
}

fn quote(attribute: &Attribute) -> String {
    attribute.meta.require_list().map(|list| list.tokens.to_string()).unwrap_or_default()
}

fn read_module(file: &Path, dir: &Path, path: String, into: &mut BTreeMap<String, Module>) {
    let text = std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let parsed = syn::parse_file(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let parts: Vec<String> =
        path.split("::").filter(|p| !p.is_empty()).map(str::to_owned).collect();
    let child = |item: &Item| match item {
        Item::Mod(ItemMod { ident, attrs, content: None, .. }) if !is_test(attrs) => {
            Some(ident.to_string())
        }
        _ => None,
    };
    let children = parsed.items.iter().filter_map(child).collect();
    let (exports, named, bare) = Default::default();
    let mut found = Found { here: parts, children, exports, named, bare };
    for item in &parsed.items {
        if let Some(name) = child(item) {
            let (flat, folder) = (dir.join(format!("{name}.rs")), dir.join(&name));
            let file = if flat.exists() { flat } else { folder.join("mod.rs") };
            let below = if path.is_empty() { name } else { format!("{path}::{name}") };
            read_module(&file, &folder, below, into);
        }
        found.visit_item(item);
    }
    let named = found.named();
    let Found { exports, .. } = found;
    into.insert(path, Module { items: parsed.items, exports, named });
}

/// The names in a file.
struct Found {
    /// The module's own path.
    here: Vec<String>,
    /// The modules in files below it.
    children: BTreeSet<String>,
    exports: Vec<(String, Vec<String>)>,
    named: Vec<Vec<String>>,
    /// Paths that begin with a name of the file itself.
    bare: Vec<Vec<String>>,
}

impl Found {
    /// Returns all paths that the file uses. A re-export counts only if the file itself uses it.
    fn named(&mut self) -> Vec<Vec<String>> {
        let used = self.bare.iter().filter_map(|path| {
            let (_, to) = self.exports.iter().find(|(name, _)| *name == path[0])?;
            Some([to, &path[1..]].concat())
        });
        let used: Vec<Vec<String>> = used.collect();
        self.named.extend(used);
        std::mem::take(&mut self.named)
    }

    fn is_child(&self, path: &[String]) -> bool {
        path.first().is_some_and(|first| self.children.contains(first))
    }

    /// Returns the path from the crate's root; `None` for a path outside the crate.
    fn resolve(&self, path: &[String], is_use: bool) -> Option<Vec<String>> {
        let mut base = self.here.clone();
        let mut rest = path;
        match rest.first()?.as_str() {
            "crate" => {
                base.clear();
                rest = &rest[1..];
            }
            "self" => rest = &rest[1..],
            "super" => {
                while rest.first().is_some_and(|part| part == "super") {
                    base.pop();
                    rest = &rest[1..];
                }
            }
            // `use` and re-exports may name a child of this module. The path of another crate becomes
            // one that no module owns.
            _ if is_use => {}
            // `front::bind()` names a child module; a single name is not a path into a module.
            _ if path.len() > 1 && self.is_child(path) => {}
            _ => return None,
        }
        base.extend(rest.iter().cloned());
        Some(base)
    }
}

impl<'a> Visit<'a> for Found {
    fn visit_item(&mut self, item: &'a Item) {
        let attributes: &[Attribute] = match item {
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            Item::Mod(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            Item::Struct(item) => &item.attrs,
            Item::Const(item) => &item.attrs,
            _ => &[],
        };
        if !is_test(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'a ItemUse) {
        let mut paths = Vec::new();
        flatten(&item.tree, &mut Vec::new(), &mut paths);
        let hands_on = !matches!(item.vis, Visibility::Inherited);
        for (name, path) in paths {
            let first = path.first().map(String::as_str);
            let local = matches!(first, Some("crate" | "self" | "super"));
            let Some(full) = self.resolve(&path, true) else { continue };
            let local = local || self.is_child(&path);
            match (hands_on, local) {
                (true, _) => self.exports.push((name, full)),
                (false, true) => self.named.push(full),
                // A path of another crate.
                (false, false) => {}
            }
        }
    }

    fn visit_path(&mut self, path: &'a SynPath) {
        let parts: Vec<String> = path.segments.iter().map(|part| part.ident.to_string()).collect();
        match self.resolve(&parts, false) {
            Some(full) => self.named.push(full),
            None => self.bare.push(parts),
        }
        visit::visit_path(self, path);
    }

    fn visit_attribute(&mut self, _: &'a Attribute) {}

    /// `pub(super)` says who may see an item, and imports nothing.
    fn visit_visibility(&mut self, _: &'a Visibility) {}
}

fn flatten(tree: &UseTree, before: &mut Vec<String>, into: &mut Vec<(String, Vec<String>)>) {
    match tree {
        UseTree::Path(path) => {
            before.push(path.ident.to_string());
            flatten(&path.tree, before, into);
            before.pop();
        }
        UseTree::Name(name) => {
            let ident = name.ident.to_string();
            let mut path = before.clone();
            if ident != "self" {
                path.push(ident.clone());
            }
            let known = path.last().cloned().unwrap_or(ident);
            into.push((known, path));
        }
        UseTree::Rename(rename) => {
            let mut path = before.clone();
            path.push(rename.ident.to_string());
            into.push((rename.rename.to_string(), path));
        }
        UseTree::Glob(_) => into.push(("*".to_owned(), before.clone())),
        UseTree::Group(group) => group.items.iter().for_each(|tree| flatten(tree, before, into)),
    }
}
