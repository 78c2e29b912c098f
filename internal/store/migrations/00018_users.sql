-- +goose Up

-- Accounts are users now. Those of the version before are admins: the admin, and hatchd
-- itself. Constraints that are only in PostgreSQL keep their names.
ALTER TABLE accounts RENAME TO users;
ALTER TABLE users ADD COLUMN role TEXT NOT NULL DEFAULT 'admin';
ALTER TABLE users ADD COLUMN disabled BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE users ADD COLUMN deleting BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE users ADD COLUMN updated_at BIGINT NOT NULL DEFAULT 0;
UPDATE users SET updated_at = created_at;
CREATE UNIQUE INDEX users_name ON users (name);

ALTER TABLE api_keys ADD COLUMN note TEXT NOT NULL DEFAULT '';
ALTER TABLE api_keys ADD COLUMN prefix TEXT NOT NULL DEFAULT '';         -- '' when it is not known
ALTER TABLE api_keys ADD COLUMN scopes TEXT NOT NULL DEFAULT 'admin';    -- with a space between two
ALTER TABLE api_keys ADD COLUMN expires_at BIGINT;
ALTER TABLE api_keys ADD COLUMN allowed_cidrs TEXT NOT NULL DEFAULT '';  -- with a space between two; '' for all

ALTER TABLE images ADD COLUMN visibility TEXT NOT NULL DEFAULT 'private';
ALTER TABLE templates ADD COLUMN visibility TEXT NOT NULL DEFAULT 'private';

-- The users that a shared image or template is shared with.
CREATE TABLE image_shares (
    image_id TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
    user_id  TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT image_shares_image_id_user_id PRIMARY KEY (image_id, user_id)
);
CREATE INDEX image_shares_user_id ON image_shares (user_id);
CREATE TABLE template_shares (
    template_id TEXT NOT NULL REFERENCES templates (id) ON DELETE CASCADE,
    user_id     TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT template_shares_template_id_user_id PRIMARY KEY (template_id, user_id)
);
CREATE INDEX template_shares_user_id ON template_shares (user_id);

-- The images that hatchd makes are its own, and every user's.
INSERT INTO users (id, name, created_at, updated_at)
    SELECT 'acc_system', 'system', created_at, created_at FROM images
    WHERE id IN ('img_default', 'img_minimal') AND NOT EXISTS (SELECT 1 FROM users WHERE id = 'acc_system')
    ORDER BY created_at LIMIT 1;
UPDATE images SET owner_id = 'acc_system', visibility = 'public' WHERE id IN ('img_default', 'img_minimal');

-- +goose Down
UPDATE images SET owner_id = 'acc_admin' WHERE owner_id = 'acc_system' AND EXISTS (SELECT 1 FROM users WHERE id = 'acc_admin');
DROP TABLE template_shares;
DROP TABLE image_shares;
ALTER TABLE templates DROP COLUMN visibility;
ALTER TABLE images DROP COLUMN visibility;
ALTER TABLE api_keys DROP COLUMN allowed_cidrs;
ALTER TABLE api_keys DROP COLUMN expires_at;
ALTER TABLE api_keys DROP COLUMN scopes;
ALTER TABLE api_keys DROP COLUMN prefix;
ALTER TABLE api_keys DROP COLUMN note;
DROP INDEX users_name;
ALTER TABLE users DROP COLUMN updated_at;
ALTER TABLE users DROP COLUMN deleting;
ALTER TABLE users DROP COLUMN disabled;
ALTER TABLE users DROP COLUMN role;
ALTER TABLE users RENAME TO accounts;
