//! Templates: found, given up, and removed. They are made a floor above (`template_maker.rs`), since one
//! that is made is booted as an instance.

mod lookup;
mod renewal;
mod standing;

pub(crate) use lookup::{Template, Templates, is_template_builder, publish};
#[cfg(test)]
pub(crate) use standing::RENEWED;
