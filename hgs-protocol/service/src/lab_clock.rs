//! The lab's hold on a process's clock: a Unix socket that exists only with `--lab-clock`.
//!
//! A client sends `advance SECONDS` and a newline; the answer is `now SECONDS-SINCE-1970` or `error …`.
//! Time only moves forward.

use std::{path::Path, time::Duration};

use anyhow::Context;
use hgs_protocol::env::Clock;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    task::JoinHandle,
};

/// Listens on `path` for as long as the process runs, or until the task is aborted.
pub fn listen(path: &Path, clock: Clock) -> anyhow::Result<JoinHandle<()>> {
    listen_and(path, clock, || async {})
}

/// As [`listen`]; after each move does `then` to its end before it answers, so that whoever moved the clock knows that
/// nothing is left of what became due.
pub fn listen_and<F, T>(path: &Path, clock: Clock, then: F) -> anyhow::Result<JoinHandle<()>>
where
    F: Fn() -> T + Clone + Send + Sync + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    if path.exists() {
        std::fs::remove_file(path).with_context(|| format!("the old socket {} cannot be removed", path.display()))?;
    }
    let listener =
        UnixListener::bind(path).with_context(|| format!("the lab clock cannot listen on {}", path.display()))?;
    tracing::warn!(socket = %path.display(), "this process's clock can be moved by the lab");
    Ok(tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream, clock.clone(), then.clone()));
        }
    }))
}

async fn answer<T: Future<Output = ()> + Send>(stream: UnixStream, clock: Clock, then: impl Fn() -> T + Send + Sync) {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let reply = match line.strip_prefix("advance ").and_then(|s| s.trim().parse().ok()) {
            Some(seconds) => {
                let now = clock.advance(Duration::from_secs(seconds));
                tracing::warn!(seconds, now = %now, "the lab moved the clock");
                then().await;
                format!("now {}\n", now.0)
            }
            None => "error: say `advance SECONDS`\n".to_owned(),
        };
        if write.write_all(reply.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Asks the process behind `path` to move its clock forward by `seconds`; answers its new time.
pub async fn advance(path: &Path, seconds: u64) -> anyhow::Result<i64> {
    let stream = UnixStream::connect(path).await.with_context(|| {
        format!(
            "no lab clock answers on {}: was the process started with --lab-clock?",
            path.display()
        )
    })?;
    let (read, mut write) = stream.into_split();
    write.write_all(format!("advance {seconds}\n").as_bytes()).await?;
    let line = BufReader::new(read)
        .lines()
        .next_line()
        .await?
        .context("the lab clock closed the connection")?;
    let now = line
        .strip_prefix("now ")
        .with_context(|| format!("the lab clock answered: {line}"))?;
    now.trim().parse().context("the lab clock answered with no time")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_became_due_is_done_before_the_answer() {
        use std::sync::{Arc, Mutex};

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("clock");
        let (clock, seen) = (Clock::system(), Arc::new(Mutex::new(Vec::new())));
        let (at, list) = (clock.clone(), seen.clone());
        listen_and(&path, clock, move || {
            let (at, list) = (at.clone(), list.clone());
            async move {
                tokio::task::yield_now().await;
                list.lock().unwrap().push(at.now().0);
            }
        })
        .unwrap();
        for step in [10, 3600] {
            let before = seen.lock().unwrap().len();
            let now = advance(&path, step).await.unwrap();
            let seen = seen.lock().unwrap();
            assert_eq!(seen.len(), before + 1);
            assert!(seen.last().is_some_and(|at| (now..=now + 1).contains(at)));
        }
    }

    #[tokio::test]
    async fn the_lab_moves_the_clock_forward_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("clock");
        let clock = Clock::system();
        listen(&path, clock.clone()).unwrap();
        let before = clock.now().0;
        let now = advance(&path, 9 * 3600).await.unwrap();
        assert!(now - before >= 9 * 3600);
        assert!(clock.now().0 >= now);
        let stream = UnixStream::connect(&path).await.unwrap();
        let (read, mut write) = stream.into_split();
        write.write_all(b"advance -5\n").await.unwrap();
        let line = BufReader::new(read).lines().next_line().await.unwrap().unwrap();
        assert!(line.starts_with("error"), "{line}");
    }
}
