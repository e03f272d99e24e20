-- Times are seconds since 1970. Nothing secret stands in a column unsealed.
CREATE TABLE tpm_host (
    name TEXT PRIMARY KEY,
    ek_sha256 BLOB NOT NULL,           -- SHA-256 of the endorsement key's SubjectPublicKeyInfo
    version INTEGER NOT NULL,             -- policy version, 1 or 2
    unproven INTEGER NOT NULL,            -- 1: registered without a certificate of the TPM's vendor
    vendor TEXT,                      -- subject of the trusted root, where there is a certificate
    added_at BIGINT NOT NULL,
    UNIQUE (ek_sha256, version)
);
CREATE TABLE host_key (
    name TEXT PRIMARY KEY,
    spki_sha256 BLOB NOT NULL UNIQUE,  -- SHA-256 of the host key's SubjectPublicKeyInfo
    algorithm TEXT NOT NULL,          -- RSA or P-256
    added_at BIGINT NOT NULL
);
CREATE TABLE vsm_key (                -- every VSM key that was certified, when first seen for a host
    host TEXT NOT NULL,
    spki_sha256 BLOB NOT NULL,
    mode TEXT NOT NULL,
    first_seen BIGINT NOT NULL,
    PRIMARY KEY (host, spki_sha256)
);
CREATE TABLE registered (
    kind TEXT NOT NULL,               -- baseline, ci-policy, dump-key, host-group, tpm-trust, denied-key, switch, setting
    name TEXT NOT NULL,
    version INTEGER NOT NULL,             -- policy version, 1 or 2; 0 where there is none
    staged INTEGER NOT NULL,              -- 1: kept, but no host is held against it yet
    body TEXT NOT NULL,               -- JSON
    PRIMARY KEY (kind, name)
);
CREATE TABLE signer (
    id TEXT PRIMARY KEY,              -- SHA-256 of the certificate, hex
    slot TEXT UNIQUE,                 -- active, pending, or NULL for an old one
    certificate BLOB NOT NULL,
    sealed BLOB,                       -- NULL once an old one is no longer published
    made_at BIGINT NOT NULL,
    published_until BIGINT            -- of an old one: when its last health certificate has expired
);
CREATE TABLE sealed_key (
    name TEXT PRIMARY KEY,
    certificate BLOB,
    sealed BLOB NOT NULL
);
CREATE TABLE audit (
    writer BLOB NOT NULL,
    sequence BIGINT NOT NULL,
    at BIGINT NOT NULL,
    kind TEXT NOT NULL,
    once BLOB UNIQUE,
    body TEXT NOT NULL,
    mac BLOB NOT NULL,
    PRIMARY KEY (writer, sequence)
);
