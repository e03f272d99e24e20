//! What the front door (HAProxy) says of its replicas, from `/stats;csv`.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use anyhow::{Context, ensure};

use super::engine::until;
use crate::fabric::service::http_client;

/// The operators' port of the front door.
#[derive(Clone, Debug)]
pub(super) struct FrontDoor {
    url: String,
    http: reqwest::Client,
}

/// Counters since the front door started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Passed {
    /// Requests that clients sent.
    pub(super) requests: u64,
    /// How often a request was sent to the same replica again.
    pub(super) retried: u64,
    /// How often it was sent to another replica.
    pub(super) redispatched: u64,
}

impl FrontDoor {
    pub(super) fn at(address: SocketAddr) -> anyhow::Result<FrontDoor> {
        Ok(FrontDoor {
            url: format!("http://{address}/stats;csv"),
            http: http_client(5, None)?,
        })
    }

    /// The counters now.
    pub(super) async fn passed(&self) -> anyhow::Result<Passed> {
        let rows = self.rows().await?;
        let sum = |proxy: &str, name: &str, column: &str| -> u64 {
            let of = rows.iter().filter(|row| row.is(proxy, name));
            of.filter_map(|row| row.number(column)).sum()
        };
        let both = |column| sum("attestation", "BACKEND", column) + sum("kps", "BACKEND", column);
        Ok(Passed {
            requests: sum("hgs", "FRONTEND", "req_tot"),
            retried: both("wretr"),
            redispatched: both("wredis"),
        })
    }

    /// Whether requests are given to a replica: `kps-2`, say, in the backend `kps`.
    pub(super) async fn is_up(&self, replica: &str) -> anyhow::Result<bool> {
        let proxy = replica.split('-').next().unwrap_or(replica);
        let rows = self.rows().await?;
        let row = rows.iter().find(|row| row.is(proxy, replica));
        let row = row.with_context(|| format!("the front door does not know {replica}"))?;
        Ok(row.0.get("status").is_some_and(|status| status.starts_with("UP")))
    }

    /// Waits until each of `replicas` is (`up`) or is not in use.
    pub(super) async fn until_all(&self, replicas: &[&str], up: bool, most: Duration) -> anyhow::Result<()> {
        let words = if up { "are in use" } else { "are out of use" };
        until(&format!("{} {words}", replicas.join(", ")), most, async || {
            for replica in replicas {
                if self.is_up(replica).await? != up {
                    return Ok(false);
                }
            }
            Ok(true)
        })
        .await
    }

    async fn rows(&self) -> anyhow::Result<Vec<Row>> {
        let answer = self.http.get(&self.url).send().await;
        let answer = answer.context("the front door's operators' port does not answer")?;
        rows(&answer.error_for_status()?.text().await?)
    }
}

/// One line by the names of its columns.
struct Row(HashMap<String, String>);

impl Row {
    fn is(&self, proxy: &str, name: &str) -> bool {
        let of = |column: &str| self.0.get(column).map(String::as_str);
        of("pxname") == Some(proxy) && of("svname") == Some(name)
    }

    fn number(&self, column: &str) -> Option<u64> {
        self.0.get(column)?.parse().ok()
    }
}

fn rows(text: &str) -> anyhow::Result<Vec<Row>> {
    let mut lines = text.lines();
    let head = lines.next().and_then(|line| line.strip_prefix("# "));
    let head: Vec<&str> = head
        .context("the front door's answer is no table")?
        .split(',')
        .collect();
    ensure!(head.contains(&"wredis"), "the front door's table has other columns");
    let row = |line: &str| {
        Row(head
            .iter()
            .map(|c| (*c).to_owned())
            .zip(line.split(',').map(str::to_owned))
            .collect())
    };
    Ok(lines.filter(|line| !line.is_empty()).map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_found_by_their_names() {
        let text = "# pxname,svname,wretr,wredis,status,req_tot,\nhgs,FRONTEND,,,OPEN,7,\nkps,kps-2,1,2,UP 1/3,,\n\n";
        let rows = rows(text).unwrap();
        assert_eq!(rows.len(), 2);
        assert!(rows[0].is("hgs", "FRONTEND") && !rows[0].is("kps", "FRONTEND"));
        assert_eq!((rows[0].number("req_tot"), rows[0].number("wretr")), (Some(7), None));
        assert_eq!(rows[1].number("wredis"), Some(2));
        assert!(super::rows("<html>").is_err());
    }
}
