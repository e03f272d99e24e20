-- Certificates of this key protection service. A private key is either sealed by the key-encryption key or in a token.
CREATE TABLE guardian_certificate (
    role        TEXT NOT NULL CHECK (role IN ('signing', 'encryption', 'communications')),
    thumbprint  TEXT NOT NULL,                      -- SHA-256 of the certificate, hex
    is_primary  BOOLEAN NOT NULL,
    is_enabled  BOOLEAN NOT NULL CHECK (is_enabled OR NOT is_primary),
    certificate BLOB NOT NULL,                    -- DER
    sealed_key  BLOB,                             -- PKCS#8, sealed
    token_key   TEXT CHECK ((token_key IS NULL) <> (sealed_key IS NULL)), -- id of the key in the token, hex
    request_id  TEXT UNIQUE,                        -- of the request that made it, so that a repetition makes no second
    added_at    BIGINT NOT NULL,                    -- seconds since 1970
    PRIMARY KEY (role, thumbprint)
);
CREATE UNIQUE INDEX guardian_certificate_one_primary ON guardian_certificate (role) WHERE is_primary;

-- What an administrator chose; one row. Every change of certificates, signers or settings raises the revision, by
-- which each replica sees that it must read them again.
CREATE TABLE standing (
    one                 BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    revision            BIGINT NOT NULL,
    accepted_modes      TEXT NOT NULL,              -- numbers of attestation modes, each followed by a blank
    max_offline_unwraps BIGINT,                     -- NULL: as the service was started
    allow_sha1_oaep     BOOLEAN NOT NULL
);
INSERT INTO standing VALUES (1, 0, '1 2 3 ', NULL, FALSE);

-- Attestation signers whose health certificates are accepted.
CREATE TABLE attestation_signer (
    thumbprint         TEXT NOT NULL PRIMARY KEY,   -- SHA-256 of the certificate, hex
    certificate        BLOB NOT NULL,               -- DER
    deny_issued_before BIGINT,                      -- seconds since 1970; NULL: none denied
    added_at           BIGINT NOT NULL
);

CREATE TABLE audit (
    writer   BLOB NOT NULL,
    sequence BIGINT NOT NULL,
    at       BIGINT NOT NULL,
    kind     TEXT NOT NULL,
    once     BLOB UNIQUE,
    body     TEXT NOT NULL,
    mac      BLOB NOT NULL,
    PRIMARY KEY (writer, sequence)
);
