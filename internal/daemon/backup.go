package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/config"
	"github.com/hatchvm/hatch/internal/host/backup"
	"github.com/hatchvm/hatch/internal/host/keyfile"
	"github.com/hatchvm/hatch/internal/host/owned"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/secret"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/store"
	"github.com/hatchvm/hatch/internal/vm"
)

// Names in a backup and in the data directory.
const (
	databaseName = "hatch.db"
	hostIDName   = "host-id"
	certsDir     = "certificates"

	stagingPrefix = ".backup-" // of the directory of a backup that is being made
)

// BackupOptions is what a backup has.
type BackupOptions struct {
	Disks       bool // disks and saved memory of VMs that do not run, and snapshots
	WithoutKeys bool // no keys, without which the secrets in it cannot be read
}

// Backup writes an archive of the data directory, while a daemon may be using it. The
// database is copied at one moment. Files are copied after that, and a VM whose row has
// changed meanwhile is left out, as is one that runs; the copy of the database says so.
func Backup(ctx context.Context, cfg config.Config, opt Options, b BackupOptions, to io.Writer) (err error) {
	if store.IsPostgres(cfg.DatabaseURL) {
		return errors.New("cannot back up a PostgreSQL database: dump it with pg_dump, and copy host-id, secrets.key, admin.key and images of the data directory; " +
			"with hatchd stopped, the disks of stopped VMs and snapshots, too")
	}
	if err := owned.Check(cfg.DataDir, cfg.TrustDataDirParents); err != nil {
		return fmt.Errorf("cannot use HATCH_DATA_DIR %s: %w", cfg.DataDir, err)
	}
	for _, name := range []string{filepath.Join(cfg.DataDir, hostIDName), cfg.DatabaseURL} { // which opening would make
		if _, err := os.Stat(name); err != nil {
			return fmt.Errorf("cannot back up %s: %w", cfg.DataDir, err)
		}
	}
	staging, err := os.MkdirTemp(cfg.DataDir, stagingPrefix) // on the disk that is sized for the database, with mode 0700
	if err != nil {
		return fmt.Errorf("cannot begin the backup: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(staging)) }()
	inUse, err := store.LockDir(staging) // until it is removed, against removeStaleBackups
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, inUse.Close()) }()
	j := &backupJob{cfg: cfg, BackupOptions: b, copy: filepath.Join(staging, databaseName), keys: &usedKeys{file: keyfile.File{Path: cfg.SecretsKeyFile}}}
	if j.live, err = store.OpenLive(cfg.DatabaseURL); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, j.live.Close()) }()
	at := time.Now().UTC().Truncate(time.Second)
	if err := j.live.CopyTo(ctx, j.copy); err != nil {
		return err
	}
	if err := os.Chmod(j.copy, 0o600); err != nil {
		return fmt.Errorf("cannot begin the backup: %w", err)
	}
	head := backup.Head{Version: opt.Version, DataDir: cfg.DataDir, CreatedAt: at, Keys: !b.WithoutKeys, Disks: b.Disks}
	if j.out, err = backup.NewWriter(to, head); err != nil {
		return err
	}
	j.why = "restored from a backup of " + at.Format(time.RFC3339)
	if err := j.run(ctx); err != nil {
		return err
	}
	return j.report(opt.Out)
}

// usedKeys is the key file of a database that is copied. It is never made, and what was
// loaded is what opens the copy, also if the file is replaced meanwhile.
type usedKeys struct {
	file   keyfile.File
	loaded secret.Identities
}

// Load implements [store.KeyFile].
func (k *usedKeys) Load() (ids secret.Identities, err error) {
	if k.loaded == nil {
		k.loaded, err = k.file.Load()
	}
	return k.loaded, err
}

// Create implements [store.KeyFile].
func (k *usedKeys) Create() (secret.Identities, error) {
	return nil, fmt.Errorf("cannot back up the secrets: there is no %s, which hatchd makes at its first start", k.file.Path)
}

// removeStaleBackups removes the directories of backups that were killed.
func removeStaleBackups(dataDir string) error {
	entries, err := os.ReadDir(dataDir)
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), stagingPrefix) {
			continue
		}
		path := filepath.Join(dataDir, e.Name())
		lock, lockErr := store.LockDir(path)
		if lockErr != nil { // it is being made
			continue
		}
		err = errors.Join(err, os.RemoveAll(path), lock.Close())
	}
	return err
}

// backupJob is one backup.
type backupJob struct {
	cfg config.Config
	BackupOptions
	copy string // of the database
	why  string // begins the reason of VMs that are not as they were
	live *store.Live
	db   *store.Store // the copy, open
	keys *usedKeys
	out  *backup.Writer
	left []backup.LeftOut
}

func (j *backupJob) leaveOut(what, format string, args ...any) {
	j.left = append(j.left, backup.LeftOut{What: what, Why: fmt.Sprintf(format, args...)})
}

func (j *backupJob) run(ctx context.Context) error {
	if err := j.fillFromCopy(ctx); err != nil {
		return err
	}
	if err := store.Flatten(ctx, j.copy); err != nil {
		return err
	}
	if err := j.out.Add(ctx, databaseName, j.copy); err != nil {
		return err
	}
	return j.out.Close(j.left)
}

// fillFromCopy adds the files that the copy of the database names, and changes the copy
// to what was added.
func (j *backupJob) fillFromCopy(ctx context.Context) (err error) {
	hostID, err := store.HostID(j.cfg.DataDir)
	if err != nil {
		return err
	}
	if j.db, err = store.OpenFor(ctx, j.copy, store.Directory{HostID: hostID, Keys: j.keys}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, j.db.Close()) }()
	for _, step := range []func(context.Context) error{j.addKeys, j.addImages, j.addSnapshots, j.addVMs} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return j.db.Scrub(ctx) // a database of a version before had secrets as they are
}

// addKeys adds the host's id and, unless they are left out, the keys.
func (j *backupJob) addKeys(ctx context.Context) error {
	if err := j.out.Add(ctx, hostIDName, j.path(hostIDName)); err != nil {
		return err
	}
	if j.WithoutKeys {
		j.leaveOut("keys", "as asked: keep %s elsewhere, without which the secrets in the backup cannot be read", j.cfg.SecretsKeyFile)
		return nil
	}
	keys := keyfile.File{Path: filepath.Join(filepath.Dir(j.copy), keyfile.Name)}
	if err := keys.Add(j.keys.loaded); err != nil {
		return err
	}
	if err := j.out.Add(ctx, keyfile.Name, keys.Path); err != nil {
		return err
	}
	if err := j.out.Add(ctx, access.KeyFile, j.path(access.KeyFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return j.addTree(ctx, certsDir)
}

// addImages adds the files of images in the data directory that an image, a VM or a
// snapshot uses.
func (j *backupJob) addImages(ctx context.Context) error {
	images, err := j.db.Images(ctx, access.Everyone)
	if err != nil {
		return err
	}
	vms, err := j.db.AllVMs(ctx)
	if err != nil {
		return err
	}
	snaps, err := j.db.HostSnapshots(ctx)
	if err != nil {
		return err
	}
	boots := map[string]image.Boot{} // by a name for the user
	for _, v := range vms {
		boots["VM "+v.ID] = v.Boot
	}
	for _, snap := range snaps {
		boots["snapshot "+snap.ID] = snap.VM.Boot
	}
	for _, i := range images {
		boots["image "+i.ID] = i.Boot()
	}
	done := map[string]bool{"": true}
	for what, boot := range boots {
		for _, path := range []string{boot.Kernel.Path, boot.Rootfs.Path, boot.ModulesPath} {
			if done[path] {
				continue
			}
			done[path] = true
			if err := j.addImageFile(ctx, what, path); err != nil {
				return err
			}
		}
	}
	return j.addTree(ctx, "images/debian.json")
}

// addImageFile adds a file, or a directory of kernel modules, that what boots with.
func (j *backupJob) addImageFile(ctx context.Context, what, path string) error {
	name, inside := strings.CutPrefix(path, j.cfg.DataDir+"/")
	if !inside {
		j.leaveOut(what, "%s is outside of the data directory", path)
		return nil
	}
	mark := j.out.Mark()
	err := j.addTree(ctx, name)
	if err == nil && j.out.Mark() == mark {
		j.leaveOut(what, "%s is missing, or is not a regular file", path)
	}
	return err
}

// addSnapshots adds the files of durable snapshots. Rows of others are removed from the
// copy: they would promise files that are not in the backup.
func (j *backupJob) addSnapshots(ctx context.Context) error {
	snaps, err := j.db.HostSnapshots(ctx)
	if err != nil {
		return err
	}
	for _, snap := range snaps {
		why := ""
		switch {
		case !snap.Durable || snap.Kind == snapshot.Warm: // unfinished, or made again
		case !j.Disks:
			why = "without --disks"
		default:
			mark := j.out.Mark()
			err := j.addTree(ctx, filepath.Join(SnapshotDir, snap.ID))
			if err == nil {
				var there bool
				if there, err = j.live.HasSnapshot(ctx, snap.ID); err == nil && there && j.out.Mark() > mark {
					continue
				}
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, backup.ErrChanged) {
				return err
			}
			j.out.Drop(mark)
			why = "it was deleted meanwhile"
		}
		if why != "" {
			j.leaveOut("snapshot "+snap.ID, "%s", why)
		}
		if err := j.db.DeleteSnapshot(ctx, snap.ID); err != nil {
			return err
		}
	}
	return nil
}

// addVMs adds the disks of VMs, and the memory of those that sleep.
func (j *backupJob) addVMs(ctx context.Context) error {
	vms, err := j.db.AllVMs(ctx)
	if err != nil {
		return err
	}
	for _, v := range vms {
		if v.Intent == vm.IntentDeleted || v.Unconfirmed != "" { // going, or not there yet
			if err := j.db.DeleteVM(ctx, v.ID); err != nil {
				return err
			}
			continue
		}
		why, err := j.addVM(ctx, v)
		if err != nil {
			return err
		}
		if why == "" {
			continue
		}
		j.leaveOut("disk of VM "+v.ID, "%s", why)
		if _, err := j.db.UpdateVM(ctx, v.ID, vm.ToStopped(j.why+", which does not have its disk: "+why)); err != nil {
			return err
		}
	}
	return nil
}

// addVM adds the files of one VM, or returns why not.
func (j *backupJob) addVM(ctx context.Context, v vm.VM) (why string, err error) {
	asleep := v.State == vm.Snapshotted && v.Sleep != nil && v.Sleep.Durable && !v.Sleep.Staged
	switch {
	case !j.Disks:
		return "the backup was made without --disks", nil
	case v.State == vm.Snapshotted && !asleep:
		return "its memory was not on disk yet", nil
	case !asleep && v.State != vm.Stopped && v.State != vm.Failed || v.Machine != nil:
		return fmt.Sprintf("it was %s; stop it or put it to sleep first", v.State), nil
	case !v.Provisioned:
		return "", nil // it has none yet
	}
	mark, dir := j.out.Mark(), filepath.Join(VMsDir, v.ID)
	err = j.out.Add(ctx, filepath.Join(dir, "disk.img"), j.path(filepath.Join(dir, "disk.img")))
	for _, name := range []string{"sleep", "seed.iso"} { // a start makes a seed anew, and a wake needs the one that the guest has
		if err == nil && asleep {
			err = j.addTree(ctx, filepath.Join(dir, name))
		}
	}
	var revision int64
	if err == nil {
		revision, err = j.live.Revision(ctx, v.ID)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, backup.ErrChanged), err == nil && revision != v.Revision:
		j.out.Drop(mark)
		return "the VM was changed, or used, while its disk was copied", nil
	}
	return "", err
}

func (j *backupJob) path(name string) string { return filepath.Join(j.cfg.DataDir, name) }

// addTree adds a file, or the files below a directory. A missing one is left out, also
// one that is removed meanwhile; whether that matters is the caller's to find out.
func (j *backupJob) addTree(ctx context.Context, name string) error {
	return filepath.WalkDir(j.path(name), func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || d.IsDir() {
			return err
		}
		inside := strings.TrimPrefix(path, j.cfg.DataDir+"/")
		if !d.Type().IsRegular() {
			if inside != name { // else the caller says so
				j.leaveOut(inside, "it is not a regular file")
			}
			return nil
		}
		if err := j.out.Add(ctx, inside, path); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}

// report says what the backup has not.
func (j *backupJob) report(out io.Writer) error {
	_, err := fmt.Fprintf(out, "%d files are in the backup.\n", j.out.Mark())
	for _, l := range j.left {
		if err == nil {
			_, err = fmt.Fprintf(out, "Not in it: %s: %s\n", l.What, l.Why)
		}
	}
	return err
}
