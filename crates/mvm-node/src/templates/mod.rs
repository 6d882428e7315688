//! Templates: found, given up and removed. `template_maker.rs` makes them a floor above, since a
//! template is first booted as an instance.

mod lookup;
mod metrics;
mod renewal;

pub(crate) use lookup::{Template, Templates, is_template_builder, publish};
#[cfg(test)]
pub(crate) use metrics::RENEWED;
