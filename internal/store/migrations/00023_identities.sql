-- +goose Up

-- The subject of an OpenID Connect issuer that a user is; NULL for users that admins make.
ALTER TABLE users ADD COLUMN oidc_issuer TEXT;
ALTER TABLE users ADD COLUMN oidc_subject TEXT;
CREATE UNIQUE INDEX users_oidc_issuer_oidc_subject ON users (oidc_issuer, oidc_subject);

-- +goose Down
DROP INDEX users_oidc_issuer_oidc_subject;
ALTER TABLE users DROP COLUMN oidc_subject;
ALTER TABLE users DROP COLUMN oidc_issuer;
