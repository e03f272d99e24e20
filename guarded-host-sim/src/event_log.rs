//! The event log of one host: JSON lines in two files of its agent's folder. Each event is durable when it has been
//! written. A full file becomes the older one, in whose place the one before goes, so the log has a bound; what a power
//! cut left half-written at the end is cut off at the next start. Whoever administers the host may change these files,
//! as with every log of a host.

pub mod command;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use hgs_protocol::env::Clock;
use hgs_service::events::{Event, Filter, QueryError};
use rustix::fs::OFlags;
use serde_json::Value;

/// A log that is written to.
pub struct EventLog {
    dir: PathBuf,
    clock: Clock,
    open: Mutex<Open>,
}

/// Where the next event goes.
struct Open {
    file: File,
    length: u64,
    next: u64,
}

impl EventLog {
    /// Opens the log in `dir`, or begins one.
    pub fn open(dir: &Path, clock: Clock) -> io::Result<EventLog> {
        let mut file = append(&dir.join(NEWER))?;
        // First, so that the number of an event that is cut off is given anew.
        let length = cut_torn_end(&mut file)?;
        let last = records(dir).last().map_or(0, |(number, _)| *number);
        Ok(EventLog {
            dir: dir.to_path_buf(),
            clock,
            open: Mutex::new(Open {
                file,
                length,
                next: last + 1,
            }),
        })
    }

    /// Writes an event with its number and time. A log that cannot be written stops nothing: the event is in the agent's own
    /// log then, with the reason.
    pub fn write(&self, event: Event) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let event = Event {
            record_id: open.next.to_string(),
            time_created: self.clock.now(),
            ..bounded(event)
        };
        if let Err(error) = self.append(&mut open, &event) {
            tracing::error!(%error, dir = %self.dir.display(), id = event.id, "the event log cannot be written: {}", event.message);
        }
    }

    fn append(&self, open: &mut Open, event: &Event) -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        let size = u64::try_from(line.len()).unwrap_or(u64::MAX);
        if open.length > 0 && open.length.saturating_add(size) > LARGEST {
            match fs::rename(self.dir.join(NEWER), self.dir.join(OLDER)) {
                // The last attempt came as far as this.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                renamed => renamed?,
            }
            open.file = append(&self.dir.join(NEWER))?;
            open.length = 0;
            File::open(&self.dir)?.sync_all()?;
        }
        let written = open.file.write_all(&line).and_then(|()| open.file.sync_data());
        if let Err(error) = written {
            // A disk that was full for a moment leaves no half of a line before the next one.
            open.file.set_len(open.length)?;
            return Err(error);
        }
        open.length = open.length.saturating_add(size);
        open.next += 1;
        Ok(())
    }

    /// The wanted events, newest first.
    pub fn read(&self, filter: &Filter) -> Result<Vec<Event>, QueryError> {
        // Not while a file takes the other's place.
        let _open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        read(&self.dir, filter)
    }
}

/// The wanted events in the log in `dir`, newest first. There may be a host that writes to it.
pub fn read(dir: &Path, filter: &Filter) -> Result<Vec<Event>, QueryError> {
    let before = match &filter.before {
        None => u64::MAX,
        Some(text) => text.parse().map_err(|_| QueryError::Before(text.clone()))?,
    };
    let all = records(dir).into_iter().rev();
    let wanted = all.filter(|(number, event)| *number < before && filter.wants(event));
    Ok(wanted.map(|(_, event)| event).take(filter.newest).collect())
}

/// Whether there is a log in `dir`.
pub fn is_in(dir: &Path) -> bool {
    [OLDER, NEWER].iter().any(|name| dir.join(name).is_file())
}

/// Every event with its number, oldest first. A line that is none (the end of a write that was cut off) says nothing.
fn records(dir: &Path) -> Vec<(u64, Event)> {
    let mut found: Vec<(u64, Event)> = Vec::new();
    for name in [OLDER, NEWER] {
        let text = contents(&dir.join(name)).unwrap_or_default();
        for line in text.split(|byte| *byte == b'\n') {
            let event: Option<Event> = serde_json::from_slice(line).ok();
            let number = event.as_ref().and_then(|event| event.record_id.parse().ok());
            if let (Some(event), Some(number)) = (event, number)
                && found.last().is_none_or(|(last, _)| *last < number)
            {
                found.push((number, event));
            }
        }
    }
    found
}

/// What stands in a file of the agent, who may have put a larger one there, or something that is no file.
fn contents(path: &Path) -> io::Result<Vec<u8>> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let mut bytes = Vec::new();
    if file.metadata()?.is_file() {
        file.take(2 * LARGEST).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

fn append(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(0o600);
    options.open(path)
}

/// Cuts what stands behind the last line's end; gives the length.
fn cut_torn_end(file: &mut File) -> io::Result<u64> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(2 * LARGEST).read_to_end(&mut bytes)?;
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let length = u64::try_from(whole).unwrap_or(u64::MAX);
    if whole < bytes.len() {
        file.set_len(length)?;
    }
    Ok(length)
}

/// Texts of others stand in events, so each part is cut to a length.
fn bounded(event: Event) -> Event {
    fn cut(text: String) -> String {
        match text.chars().nth(LONGEST_TEXT) {
            None => text,
            Some(_) => text.chars().take(LONGEST_TEXT).chain("...".chars()).collect(),
        }
    }
    let value = |value| match value {
        Value::String(text) => Value::String(cut(text)),
        other => other,
    };
    Event {
        message: cut(event.message),
        data: event.data.into_iter().map(|(name, one)| (name, value(one))).collect(),
        ..event
    }
}

const NEWER: &str = "events.jsonl";
const OLDER: &str = "events.1.jsonl";
/// Bytes of one of the two files.
const LARGEST: u64 = 1 << 20;
/// In characters.
const LONGEST_TEXT: usize = 2000;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hgs_service::events::{Level, Provider, Query};

    use super::*;

    fn event(id: u32) -> Event {
        Provider("GuardedFabricLab-Test").event(id, Level::Warning, "something")
    }

    fn all(newest: &str) -> Filter {
        let newest = Some(newest.to_owned());
        Query {
            newest,
            ..Query::default()
        }
        .filter()
        .unwrap()
    }

    fn older_than(record_id: &str) -> Filter {
        let before = Some(record_id.to_owned());
        Query {
            before,
            ..Query::default()
        }
        .filter()
        .unwrap()
    }

    fn ids(dir: &Path) -> Vec<u32> {
        read(dir, &all("1000")).unwrap().iter().map(|event| event.id).collect()
    }

    #[test]
    fn events_outlast_the_process_in_order_with_the_labs_time() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::system();
        let before = clock.now();
        let log = EventLog::open(dir.path(), clock.clone()).unwrap();
        log.write(event(1));
        clock.advance(Duration::from_secs(3600));
        log.write(event(2));
        drop(log);
        // A new process on a clock that is not moved: the order is that of the writing.
        let log = EventLog::open(dir.path(), Clock::system()).unwrap();
        log.write(event(3));
        let found = log.read(&all("2")).unwrap();
        assert_eq!(
            found.iter().map(|event| event.record_id.as_str()).collect::<Vec<_>>(),
            ["3", "2"]
        );
        assert!(found[1].time_created.seconds_since(before) >= 3600);
        assert!(found[0].time_created < found[1].time_created);
        let page = older_than("2");
        assert_eq!(log.read(&page).unwrap()[0].id, 1);
        let wrong = older_than("x");
        assert!(log.read(&wrong).is_err());
    }

    #[test]
    fn a_line_that_was_cut_off_at_any_byte_costs_that_event_alone() {
        let dir = tempfile::tempdir().unwrap();
        let log = EventLog::open(dir.path(), Clock::system()).unwrap();
        (1..=3).for_each(|id| log.write(event(id)));
        drop(log);
        let path = dir.path().join(NEWER);
        let whole = fs::read(&path).unwrap();
        let third = whole[..whole.len() - 1]
            .iter()
            .rposition(|byte| *byte == b'\n')
            .unwrap()
            + 1;
        for end in third..whole.len() {
            fs::write(&path, &whole[..end]).unwrap();
            let log = EventLog::open(dir.path(), Clock::system()).unwrap();
            log.write(event(4));
            assert_eq!(ids(dir.path()), [4, 2, 1], "cut at {end} of {}", whole.len());
            assert_eq!(read(dir.path(), &all("1")).unwrap()[0].record_id, "3");
        }
        // What is no event in the middle hides no other.
        fs::write(&path, [b"\xff\n{}\n".as_slice(), &whole].concat()).unwrap();
        assert_eq!(ids(dir.path()), [3, 2, 1]);
    }

    #[test]
    fn the_log_has_a_bound_and_keeps_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let log = EventLog::open(dir.path(), Clock::system()).unwrap();
        let long = |id| {
            event(id)
                .with("Reason", "x".repeat(10_000))
                .with("More", "y".repeat(1500))
        };
        for id in 0..1500 {
            log.write(long(id));
        }
        let sizes = [NEWER, OLDER].map(|name| fs::metadata(dir.path().join(name)).unwrap().len());
        assert!(sizes.iter().all(|size| *size <= LARGEST), "{sizes:?}");
        let kept = ids(dir.path());
        assert!(kept.len() > 250 && kept.len() < 1000, "{}", kept.len());
        assert_eq!(kept[..2], [1499, 1498]);
        let newest = &log.read(&all("1")).unwrap()[0];
        let reason = newest.data["Reason"].as_str().unwrap();
        assert_eq!((newest.record_id.as_str(), reason.len()), ("1500", LONGEST_TEXT + 3));
        drop(log);
        // A power cut between the two steps of the turn: the newer file is not there yet.
        fs::remove_file(dir.path().join(NEWER)).unwrap();
        let last: u64 = read(dir.path(), &all("1")).unwrap()[0].record_id.parse().unwrap();
        let log = EventLog::open(dir.path(), Clock::system()).unwrap();
        log.write(event(7));
        assert_eq!(log.read(&all("1")).unwrap()[0].record_id, (last + 1).to_string());
    }
}
