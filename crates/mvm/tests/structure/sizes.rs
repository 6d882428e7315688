//! The sizes of structs.

use crate::imports::Crate;
use std::collections::BTreeMap;
use syn::{Fields, ImplItem, Item, Type};

const MOST_FIELDS: usize = 8;
const MOST_METHODS: usize = 25;

/// Returns the structs of a crate with too many fields or methods, one line each: `crate::Struct:
/// why`.
///
/// Structs that only carry data across an edge have as many fields as that needs: wire types,
/// command lines, and rows of metrics. They are recognised by their derives.
pub fn too_large(one: &Crate) -> Vec<String> {
    let mut lines = Vec::new();
    let mut methods: BTreeMap<String, usize> = BTreeMap::new();
    for item in one.modules.values().flat_map(|module| &module.items) {
        match item {
            Item::Struct(item) => {
                let derives = |name: &str| {
                    item.attrs.iter().any(|attribute| {
                        let list = attribute.meta.require_list();
                        attribute.path().is_ident("derive")
                            && list.is_ok_and(|list| list.tokens.to_string().contains(name))
                    })
                };
                let data =
                    ["Serialize", "Deserialize", "Args", "Parser"].iter().any(|d| derives(d));
                let count = match &item.fields {
                    Fields::Named(fields) => fields.named.len(),
                    _ => 0,
                };
                if count > MOST_FIELDS && !data {
                    lines.push(format!("{}::{}: {count} fields", one.name, item.ident));
                }
            }
            Item::Impl(item) if item.trait_.is_none() => {
                if let Type::Path(of) = &*item.self_ty
                    && let Some(of) = of.path.segments.last()
                {
                    let count =
                        item.items.iter().filter(|item| matches!(item, ImplItem::Fn(_))).count();
                    *methods.entry(of.ident.to_string()).or_default() += count;
                }
            }
            _ => {}
        }
    }
    let many = methods.into_iter().filter(|(_, count)| *count > MOST_METHODS);
    lines.extend(many.map(|(of, count)| format!("{}::{of}: {count} methods", one.name)));
    lines
}
