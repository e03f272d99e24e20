-- What hosts and baselines brought: the last few boot logs of each, for comparing and for trying policies.
CREATE TABLE evidence (
    subject TEXT NOT NULL,            -- host, baseline
    name TEXT NOT NULL,
    sha256 BYTEA NOT NULL,             -- over readout and log
    place BIGINT NOT NULL,            -- grows; the highest is the last
    at BIGINT NOT NULL,
    readout BYTEA NOT NULL,            -- PCR 0-7 and 11-14 as the TPM reported them; empty for a baseline
    log BYTEA NOT NULL,
    PRIMARY KEY (subject, name, sha256)
);
-- A host's history is read from the audit rows.
CREATE INDEX audit_by_host ON audit ((body::jsonb ->> 'host'), at);
