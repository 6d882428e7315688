//! The place of imports. `rustfmt` sorts imports within one block. Its rule that makes one block of
//! them is for nightly compilers only.

/// Returns the numbers, from 1, of import lines that a blank line separates from earlier imports.
pub fn parted(text: &str) -> Vec<usize> {
    let mut found = Vec::new();
    let (mut in_use, mut after_use, mut blank) = (false, false, false);
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        let begins = !in_use && line.starts_with("use ");
        if begins && after_use && blank {
            found.push(number + 1);
        }
        if begins || in_use {
            in_use = !line.ends_with(';');
            (after_use, blank) = (!in_use, false);
        } else if line.is_empty() {
            blank = true;
        } else {
            after_use = false;
        }
    }
    found
}

#[test]
fn a_blank_line_between_imports_is_found_and_one_after_them_is_not() {
    assert_eq!(parted("use a;\n\nuse b::{\n    c,\n};\n\nuse d;\n"), [3, 7]);
    assert_eq!(parted("use a;\nuse b;\n\nmod c;\n\nuse c::D;\n\nfn e() {}\n"), [0; 0]);
}
