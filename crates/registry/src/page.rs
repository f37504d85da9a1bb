//! Lists in pages, the same for both faces. A page goes on behind a name, so that whatever changes between two pages, what was
//! there all the time is in exactly one.

use std::sync::Arc;

use crate::model::{Instance, Selector};
use crate::services::{Service, Services};

/// Entries of a page unless it is said how many.
pub(crate) const PAGE: usize = 1000;
/// Most entries of a page.
pub(crate) const PAGE_MAX: usize = 10_000;

/// The services that hold what a selector means, in the order of their names as they are written.
pub(crate) fn list_services<'a>(
    services: &'a Services,
    selector: &Selector,
    after: Option<&str>,
    limit: usize,
) -> (Vec<&'a Arc<Service>>, Option<String>) {
    let matches = |service: &&Arc<Service>| {
        !selector.is_about_instances() || service.instances.iter().any(|i| selector.matches(i))
    };
    let selected = services.select(selector).into_iter().filter(matches);
    let named = selected.map(|service| (service.key.to_string(), service));
    let behind = |name: &String| after.is_none_or(|after| name.as_str() > after);
    let mut named: Vec<_> = named.filter(|(name, _)| behind(name)).collect();
    named.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    let more = named.len() > limit;
    named.truncate(limit);
    let next = named.last().map(|(name, _)| name.clone()).filter(|_| more);
    (
        named.into_iter().map(|(_, service)| service).collect(),
        next,
    )
}

/// The instances that a selector means, in the order of their services' names and their ids. No name has a space, which stands
/// between the two in a page's end.
pub(crate) fn list_instances<'a>(
    services: &'a Services,
    selector: &Selector,
    after: Option<&str>,
    limit: usize,
) -> (Vec<&'a Arc<Instance>>, Option<String>) {
    let (last_service, last_id) = match after {
        Some(after) => after.rsplit_once(' ').unwrap_or((after, "")),
        None => ("", ""),
    };
    let selected = services.select(selector).into_iter();
    let named = selected.map(|service| (service.key.to_string(), service));
    let mut named: Vec<_> = named
        .filter(|(name, _)| name.as_str() >= last_service)
        .collect();
    named.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    let mut page: Vec<&Arc<Instance>> = Vec::new();
    let mut end: Option<String> = None;
    for (name, service) in named {
        let behind = |id: &str| name.as_str() != last_service || id > last_id;
        for instance in service.instances.iter() {
            if !selector.matches(instance) || !behind(&instance.id) {
                continue;
            }
            if page.len() == limit {
                return (page, end);
            }
            page.push(instance);
            if page.len() == limit {
                end = Some(format!("{name} {}", instance.id));
            }
        }
    }
    (page, None)
}
