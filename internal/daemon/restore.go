package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/config"
	"github.com/hatchvm/hatch/internal/host/backup"
	"github.com/hatchvm/hatch/internal/host/keyfile"
	"github.com/hatchvm/hatch/internal/host/owned"
	"github.com/hatchvm/hatch/internal/store"
)

// restoringDir is where an archive is unpacked in the data directory. While it exists,
// the directory is not whole, and no daemon starts in it.
const restoringDir = ".restoring"

// restoringNames lists, as JSON, the names in the archive, before one is moved from the
// staging directory to the data directory: those that an interrupted restore may remove.
const restoringNames = ".restoring-names"

// Restore unpacks an archive of Backup into an empty data directory. On error the
// directory has what it had before. If it is interrupted, the next call begins anew.
func Restore(ctx context.Context, cfg config.Config, opt Options, from io.Reader) (err error) {
	if cfg.DatabaseURL != filepath.Join(cfg.DataDir, databaseName) {
		return fmt.Errorf("cannot restore to the database %s: a backup has an SQLite file, which is restored as %s in the data directory; unset HATCH_DATABASE_URL for that",
			filepath.Base(cfg.DatabaseURL), databaseName)
	}
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return fmt.Errorf("cannot make HATCH_DATA_DIR %s: %w", cfg.DataDir, err)
	}
	if err := owned.Check(cfg.DataDir, cfg.TrustDataDirParents); err != nil {
		return fmt.Errorf("cannot use HATCH_DATA_DIR %s: %w", cfg.DataDir, err)
	}
	lock, err := store.LockDir(cfg.DataDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	r := restore{cfg: cfg, staging: filepath.Join(cfg.DataDir, restoringDir)}
	if err := r.prepare(); err != nil {
		return err
	}
	contents, err := r.unpack(ctx, from)
	if err != nil {
		return errors.Join(err, r.empty())
	}
	if err := r.commit(contents); err != nil {
		return errors.Join(err, r.empty())
	}
	return r.report(opt.Out, contents)
}

// restore is one restore.
type restore struct {
	cfg     config.Config
	staging string
}

// stays are the names that an empty data directory may have.
var stays = []string{"hatchd.lock", "lost+found"}

// prepare checks that the directory is empty, but for what an interrupted restore has
// left, and makes the staging directory.
func (r restore) prepare() error {
	if _, err := os.Lstat(r.staging); err == nil {
		if err := r.empty(); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(r.cfg.DataDir)
	if err != nil {
		return fmt.Errorf("cannot restore: %w", err)
	}
	var found []string
	for _, e := range entries {
		if !slices.Contains(stays, e.Name()) {
			found = append(found, e.Name())
		}
	}
	if len(found) > 0 {
		return fmt.Errorf("cannot restore to HATCH_DATA_DIR %s: it is not empty, it has %s; move what is in it elsewhere, or set another directory", r.cfg.DataDir, strings.Join(found, ", "))
	}
	if err := os.Mkdir(r.staging, 0o700); err != nil {
		return fmt.Errorf("cannot restore: %w", err)
	}
	return nil
}

// empty removes what was restored, the staging directory last. A name that is still in
// that was not moved yet: in the data directory it is another's.
func (r restore) empty() error {
	var names []string
	text, err := os.ReadFile(r.names())
	if err == nil {
		_ = json.Unmarshal(text, &names) // it is whole before the first name is moved
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	failures := []error{err}
	for _, name := range names {
		if _, err := os.Lstat(filepath.Join(r.staging, name)); errors.Is(err, fs.ErrNotExist) && filepath.IsLocal(name) {
			failures = append(failures, os.RemoveAll(filepath.Join(r.cfg.DataDir, name)))
		}
	}
	if err := errors.Join(failures...); err != nil {
		return fmt.Errorf("cannot remove what was restored: %w", err)
	}
	return errors.Join(removeNames(r.cfg.DataDir), os.RemoveAll(r.staging))
}

func (r restore) names() string { return filepath.Join(r.cfg.DataDir, restoringNames) }

// removeNames removes the list of a restore that has ended.
func removeNames(dataDir string) error {
	if err := os.Remove(filepath.Join(dataDir, restoringNames)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot end the restore: %w", err)
	}
	return nil
}

// unpack fills the staging directory, and makes it durable.
func (r restore) unpack(ctx context.Context, from io.Reader) (backup.Contents, error) {
	contents, err := backup.Extract(ctx, from, r.staging, func(head backup.Head) error {
		if head.DataDir != r.cfg.DataDir {
			return fmt.Errorf("cannot restore to %s: the backup is of %s, whose paths its database has; set HATCH_DATA_DIR to that", r.cfg.DataDir, head.DataDir)
		}
		return nil
	})
	if err != nil {
		return contents, err
	}
	inodes := map[string]uint64{}
	for _, f := range contents.Files {
		st, err := os.Stat(filepath.Join(r.staging, f.Name))
		if err != nil {
			return contents, fmt.Errorf("cannot restore: %w", err)
		}
		if sys, ok := st.Sys().(*syscall.Stat_t); ok {
			inodes[filepath.Join(r.cfg.DataDir, f.Name)] = sys.Ino
		}
	}
	for _, name := range []string{databaseName, hostIDName} {
		if inodes[filepath.Join(r.cfg.DataDir, name)] == 0 {
			return contents, fmt.Errorf("cannot restore: %w: it has no %s", backup.ErrDamaged, name)
		}
	}
	db := filepath.Join(r.staging, databaseName)
	if contents.Head.Keys {
		if err := store.CheckKeys(ctx, db, keyfile.File{Path: filepath.Join(r.staging, keyfile.Name)}); err != nil {
			return contents, fmt.Errorf("cannot restore: %w: %w", backup.ErrDamaged, err)
		}
	}
	if err := store.SetInodes(ctx, db, inodes); err != nil {
		return contents, err
	}
	if err := store.Flatten(ctx, db); err != nil {
		return contents, err
	}
	return contents, syncAll(r.staging)
}

// commit moves everything to its place. The staging directory goes last.
func (r restore) commit(contents backup.Contents) error {
	if contents.Head.Keys && r.cfg.SecretsKeyFile != filepath.Join(r.cfg.DataDir, keyfile.Name) {
		if err := r.moveKeys(); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(r.staging)
	if err != nil {
		return fmt.Errorf("cannot restore: %w", err)
	}
	if err := r.list(entries); err != nil {
		return err
	}
	for _, e := range entries { // a file that was put there meanwhile is not replaced
		from, to := filepath.Join(r.staging, e.Name()), filepath.Join(r.cfg.DataDir, e.Name())
		if err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE); err != nil {
			return fmt.Errorf("cannot restore %s: %w", to, err)
		}
	}
	if err := syncAll(r.cfg.DataDir); err != nil {
		return err
	}
	if err := os.Remove(r.staging); err != nil {
		return fmt.Errorf("cannot restore: %w", err)
	}
	if err := syncAll(r.cfg.DataDir); err != nil { // without the staging directory, before the list goes
		return err
	}
	return removeNames(r.cfg.DataDir)
}

// list stores the names of entries durably.
func (r restore) list(entries []os.DirEntry) error {
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	text, err := json.Marshal(names)
	if err == nil {
		err = os.WriteFile(r.names(), text, 0o600)
	}
	if err != nil {
		return fmt.Errorf("cannot restore: %w", err)
	}
	return syncAll(r.cfg.DataDir)
}

// moveKeys puts the key file where HATCH_SECRETS_KEY_FILE says. It replaces no other key.
func (r restore) moveKeys() error {
	from, to := keyfile.File{Path: filepath.Join(r.staging, keyfile.Name)}, keyfile.File{Path: r.cfg.SecretsKeyFile}
	ids, err := from.Load()
	if err != nil {
		return err
	}
	there, err := to.Load()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := to.Add(ids); err != nil {
			return err
		}
	case err != nil:
		return err
	case string(there.Text()) != string(ids.Text()):
		return fmt.Errorf("cannot restore the key of the secrets to %s: another key is there; move it away", r.cfg.SecretsKeyFile)
	}
	return os.Remove(from.Path)
}

// syncAll makes everything on the file system of a directory durable.
func syncAll(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("cannot restore: %w", err)
	}
	if err := errors.Join(unix.Syncfs(int(d.Fd())), d.Close()); err != nil {
		return fmt.Errorf("cannot make what was restored durable: %w", err)
	}
	return nil
}

// checkRestored refuses a data directory that a restore has not finished.
// Precondition: the directory is locked.
func checkRestored(dataDir string) error {
	if _, err := os.Lstat(filepath.Join(dataDir, restoringDir)); errors.Is(err, fs.ErrNotExist) {
		return removeNames(dataDir)
	}
	return fmt.Errorf("cannot use HATCH_DATA_DIR %s: a restore was interrupted; run hatchd restore again, or empty the directory", dataDir)
}

func (r restore) report(out io.Writer, contents backup.Contents) error {
	_, err := fmt.Fprintf(out, "%d files of %s are restored.\n", len(contents.Files), contents.Head.CreatedAt.Format("2006-01-02 15:04:05 MST"))
	for _, l := range contents.LeftOut {
		if err == nil {
			_, err = fmt.Fprintf(out, "Not in the backup: %s: %s\n", l.What, l.Why)
		}
	}
	if _, statErr := os.Stat(r.cfg.SecretsKeyFile); err == nil && statErr != nil {
		_, err = fmt.Fprintf(out, "Before hatchd starts, put the key of the secrets to %s, with mode 0600.\n", r.cfg.SecretsKeyFile)
	}
	return err
}
