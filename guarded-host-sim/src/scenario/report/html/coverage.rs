//! The page about coverage.

use std::fmt::Write as _;

use super::{escape, page as whole};
use crate::scenario::coverage::{Group, Item};

/// The page.
pub(super) fn page(groups: &[Group]) -> Result<String, std::fmt::Error> {
    let mut body = String::from("<p><a href=\"index.html\">All scenarios</a></p>");
    let items = || groups.iter().flat_map(|group| &group.items);
    let missed = items().filter(|item| item.is_missed()).count();
    let reached = items().filter(|item| item.count > 0).count();
    let excused = items().filter(|item| item.excuse.is_some()).count();
    write!(
        body,
        "<p class=\"counts\"><span class=\"verdict reached\">{reached} reached</span> <span class=\"verdict \
         missed\">{missed} missed</span> <span class=\"verdict not-built\">{excused} out of reach</span></p>"
    )?;
    for group in groups {
        write!(
            body,
            "<h2>{}</h2><table><thead><tr><th>Name</th><th>Source</th><th>Reached</th><th>By</th></tr></thead><tbody>",
            escape(group.title)
        )?;
        for item in &group.items {
            row(&mut body, item)?;
        }
        write!(body, "</tbody></table>")?;
    }
    Ok(whole("What of the specifications was reached", &body))
}

fn row(body: &mut String, item: &Item) -> std::fmt::Result {
    let reached = match (item.count, item.excuse) {
        (0, Some(why)) => format!("<span class=\"verdict not-built\">out of reach</span> {}", escape(why)),
        (0, None) => "<span class=\"verdict missed\">missed</span>".to_owned(),
        (1, _) => "<span class=\"verdict reached\">once</span>".to_owned(),
        (count, _) => format!("<span class=\"verdict reached\">{count} times</span>"),
    };
    let shown = item.scenarios.iter().take(MOST_NAMED).map(|name| {
        let name = escape(name);
        format!("<a href=\"scenario-{name}.html\">{name}</a>")
    });
    let mut by = shown.collect::<Vec<_>>().join(", ");
    if let Some(more) = item.scenarios.len().checked_sub(MOST_NAMED).filter(|more| *more > 0) {
        write!(by, " and {more} more")?;
    }
    write!(
        body,
        "<tr><td><code>{}</code></td><td class=\"soft\">{}</td><td>{reached}</td><td>{by}</td></tr>",
        escape(&item.name),
        escape(&item.source)
    )
}

const MOST_NAMED: usize = 4;
