-- +goose Up

-- When the issuer made the token that the user's role is of, in microseconds.
ALTER TABLE users ADD COLUMN oidc_issued_at BIGINT NOT NULL DEFAULT 0;

-- Subjects of the issuer whose users were deleted: their tokens are refused.
CREATE TABLE deleted_identities (
    oidc_issuer  TEXT   NOT NULL,
    oidc_subject TEXT   NOT NULL,
    user_id      TEXT   NOT NULL,
    deleted_at   BIGINT NOT NULL,
    CONSTRAINT deleted_identities_key PRIMARY KEY (oidc_issuer, oidc_subject)
);

-- The key that a key was made with, which may be gone; '' for none.
ALTER TABLE api_keys ADD COLUMN made_by TEXT NOT NULL DEFAULT '';
CREATE INDEX api_keys_made_by ON api_keys (made_by);

-- +goose Down
DROP INDEX api_keys_made_by;
ALTER TABLE api_keys DROP COLUMN made_by;
DROP TABLE deleted_identities;
ALTER TABLE users DROP COLUMN oidc_issued_at;
