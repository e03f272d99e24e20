//! The link between the hosts, which can be cut: the target's agent as the source reaches it. It keeps what the
//! source sent, for somebody to send it again.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp},
    sync::watch,
    task::JoinHandle,
};

/// A relay on loopback; it ends when it is dropped.
pub struct Wire {
    /// Where the source reaches the target: `http://ADDRESS`.
    pub url: String,
    state: watch::Sender<State>,
    sent: Arc<Mutex<Vec<u8>>>,
    accepting: JoinHandle<()>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Whole,
    /// Nothing passes, and nobody is told.
    Cut,
    /// What was under way when the link was cut is broken; new connections pass.
    Mended,
}

impl Wire {
    /// A whole link to `target`.
    pub async fn to(target: SocketAddr) -> anyhow::Result<Wire> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let (state, seen) = watch::channel(State::Whole);
        let sent = Arc::new(Mutex::new(Vec::new()));
        let kept = sent.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((source, _)) = listener.accept().await {
                tokio::spawn(relay(source, target, seen.clone(), kept.clone()));
            }
        });
        Ok(Wire {
            url,
            state,
            sent,
            accepting,
        })
    }

    /// From now on nothing passes.
    pub fn cut(&self) {
        self.state.send_replace(State::Cut);
    }

    /// Ends the cut: both ends learn that their connection is gone.
    pub fn mend(&self) {
        self.state.send_replace(State::Mended);
    }

    /// What the source has sent in one request, if it has sent all of it.
    pub fn request(&self) -> Option<Value> {
        let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        let head = sent.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
        serde_json::from_slice(sent.get(head + 4..)?).ok()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn relay(source: TcpStream, target: SocketAddr, seen: watch::Receiver<State>, kept: Arc<Mutex<Vec<u8>>>) {
    let born_in = *seen.borrow();
    let mut over = seen.clone();
    let passing = async {
        // Made even while the link is cut: the target hears nothing, and only the end of the cut tells the source.
        let target = TcpStream::connect(target).await.ok()?;
        let ((from_source, to_source), (from_target, to_target)) = (source.into_split(), target.into_split());
        let there = pass(from_source, to_target, &seen, born_in, Some(kept));
        let back = pass(from_target, to_source, &seen, born_in, None);
        tokio::join!(there, back);
        Some(())
    };
    tokio::select! {
        _ = passing => {}
        // Both streams are dropped here.
        _ = over.wait_for(|state| *state == State::Mended && born_in != State::Mended) => {}
    }
}

/// Waits as long as the link is cut.
async fn open(seen: &watch::Receiver<State>, born_in: State) -> Option<()> {
    let mut seen = seen.clone();
    seen.wait_for(|state| *state == born_in && *state != State::Cut)
        .await
        .ok()?;
    Some(())
}

async fn pass(
    mut from: tcp::OwnedReadHalf,
    mut to: tcp::OwnedWriteHalf,
    seen: &watch::Receiver<State>,
    born_in: State,
    kept: Option<Arc<Mutex<Vec<u8>>>>,
) -> Option<()> {
    let (mut bytes, mut held) = (vec![0; 16 << 10], Vec::new());
    loop {
        tokio::select! {
            read = from.read(&mut bytes) => {
                let read = bytes.get(..read.ok()?)?;
                if read.is_empty() {
                    open(seen, born_in).await?;
                    return to.write_all(&held).await.ok();
                }
                held.extend_from_slice(read);
                if let Some(kept) = &kept {
                    kept.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(read);
                }
            }
            passes = open(seen, born_in), if !held.is_empty() => {
                passes?;
                to.write_all(&held).await.ok()?;
                held.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Answers every line with itself.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        address
    }

    async fn said(stream: &mut TcpStream, words: &[u8]) -> Option<Vec<u8>> {
        stream.write_all(words).await.ok()?;
        let mut heard = vec![0; words.len()];
        stream.read_exact(&mut heard).await.ok()?;
        Some(heard)
    }

    #[tokio::test]
    async fn nothing_passes_a_cut_link_and_what_was_under_way_breaks() {
        let wire = Wire::to(echo().await).await.unwrap();
        let address = wire.url.strip_prefix("http://").unwrap();
        let mut one = TcpStream::connect(address).await.unwrap();
        let words = b"POST / HTTP/1.1\r\n\r\n{\"a\":1}";
        assert_eq!(said(&mut one, words).await.unwrap(), words);
        assert_eq!(wire.request().unwrap()["a"], 1);
        wire.cut();
        let silent = tokio::time::timeout(Duration::from_millis(100), said(&mut one, b"more")).await;
        assert!(silent.is_err(), "{silent:?}");
        wire.mend();
        assert_eq!(one.read(&mut [0]).await.unwrap_or(0), 0, "it is told of its end");
        let mut two = TcpStream::connect(address).await.unwrap();
        assert_eq!(said(&mut two, b"y").await.unwrap(), b"y");
    }
}
