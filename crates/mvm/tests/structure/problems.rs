//! Where problem documents are made.

use crate::imports::is_test;
use syn::visit::{self, Visit};
use syn::{ExprPath, ExprStruct, Item, ItemFn, ItemMod, Path};

/// Returns the expressions of these items, tests aside, that make a problem document:
/// `Problem::new`, `Problem::internal`, and the literal.
pub fn made_in(items: &[Item]) -> Vec<String> {
    let mut made = Made(Vec::new());
    items.iter().for_each(|item| made.visit_item(item));
    made.0
}

struct Made(Vec<String>);

/// Returns the names in a path.
fn names(path: &Path) -> Vec<String> {
    path.segments.iter().map(|segment| segment.ident.to_string()).collect()
}

impl<'ast> Visit<'ast> for Made {
    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast ItemFn) {
        if !is_test(&item.attrs) {
            visit::visit_item_fn(self, item);
        }
    }

    fn visit_expr_path(&mut self, path: &'ast ExprPath) {
        let names = names(&path.path);
        if let [.., of, by] = &names[..]
            && of == "Problem"
            && matches!(&**by, "new" | "internal")
        {
            self.0.push(format!("{of}::{by}"));
        }
        visit::visit_expr_path(self, path);
    }

    fn visit_expr_struct(&mut self, literal: &'ast ExprStruct) {
        if names(&literal.path) == ["Problem"] {
            self.0.push("Problem { .. }".to_owned());
        }
        visit::visit_expr_struct(self, literal);
    }
}
