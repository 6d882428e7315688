//! The table of routes, one file per subject. A new route of a router gets a row in one of them.

mod fleet;
mod instances;
mod jobs;
mod node;
mod rows;
mod tenants;

use super::route::Route;

/// All routes.
pub const ROUTES: &[Route] = &joined::<{ count(PARTS) }>(PARTS);

const PARTS: &[&[Route]] =
    &[node::ROUTES, tenants::ROUTES, instances::ROUTES, jobs::ROUTES, fleet::ROUTES];

const fn count(parts: &[&[Route]]) -> usize {
    let (mut count, mut part) = (0, 0);
    while part < parts.len() {
        count += parts[part].len();
        part += 1;
    }
    count
}

/// Joins the parts; `N` is the number of all routes.
const fn joined<const N: usize>(parts: &[&[Route]]) -> [Route; N] {
    let mut all = [parts[0][0]; N];
    let (mut at, mut part) = (0, 0);
    while part < parts.len() {
        let mut route = 0;
        while route < parts[part].len() {
            all[at] = parts[part][route];
            at += 1;
            route += 1;
        }
        part += 1;
    }
    all
}
