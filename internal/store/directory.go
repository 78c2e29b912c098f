package store

import (
	"context"
	"fmt"
)

// Directory is a data directory, as far as it shows which database goes with it.
type Directory struct {
	HostID    string
	VMs       []string // ids of VMs that have files in it
	Snapshots []string // the same of snapshots
	KeyHash   []byte   // of the admin's key in it; nil if there is none
	Keys      KeyFile  // that opens the secrets; nil: they can be read by this process only
}

// inUse reports whether the directory has been used with a database.
func (d Directory) inUse() bool { return len(d.VMs) > 0 || len(d.Snapshots) > 0 || d.KeyHash != nil }

// checkDirectory refuses a database that does not go with a directory, before a row is
// changed: files without a row would be taken for those of deleted objects, and objects
// of another directory for this one's.
func (s *database) checkDirectory(ctx context.Context, d Directory) error {
	if !d.inUse() {
		return nil
	}
	for _, goesWith := range []func(context.Context, Directory) (bool, error){s.knowsHost, s.knowsObjects, s.knowsKey} {
		if ok, err := goesWith(ctx, d); err != nil || ok {
			return err
		}
	}
	return fmt.Errorf("cannot use this database: it was never used with this data directory, which has the id %s and files of %d VMs and %d snapshots; "+
		"set HATCH_DATABASE_URL to the database that goes with it, or restore its file %s; to begin with this database, move vms, snapshots and admin.key elsewhere first",
		d.HostID, len(d.VMs), len(d.Snapshots), hostFile)
}

// knowsHost reports whether the directory's host has used the database.
func (s *database) knowsHost(ctx context.Context, d Directory) (bool, error) {
	return s.exists(ctx, "SELECT 1 FROM hosts WHERE id = ?", d.HostID)
}

// knowsObjects reports whether a VM or a snapshot in the directory has a row that can be
// this host's: an SQLite database has one host, which may have got another id.
func (s *database) knowsObjects(ctx context.Context, d Directory) (bool, error) {
	for table, ids := range map[string][]string{"vms": d.VMs, "snapshots": d.Snapshots} {
		for _, id := range ids {
			ok, err := s.exists(ctx, "SELECT 1 FROM "+table+" WHERE id = ? AND (host_id IN ('', ?) OR ?)", id, d.HostID, s.lock == nil)
			if err != nil || ok {
				return ok, err
			}
		}
	}
	return false, nil
}

// knowsKey reports whether a directory that has nothing but a key goes with the
// database. A database that has keys, but knows no host, was used before hosts were
// stored, and its admin's first key may have been deleted since.
func (s *database) knowsKey(ctx context.Context, d Directory) (bool, error) {
	if len(d.VMs) > 0 || len(d.Snapshots) > 0 {
		return false, nil
	}
	ok, err := s.exists(ctx, "SELECT 1 FROM api_keys WHERE hash = ?", d.KeyHash)
	if err != nil || ok {
		return ok, err
	}
	return s.exists(ctx, "SELECT 1 FROM api_keys WHERE NOT EXISTS (SELECT 1 FROM hosts)")
}

func (s *database) exists(ctx context.Context, query string, args ...any) (bool, error) {
	var one int
	ok, err := get(ctx, s.reads, &one, query+" LIMIT 1", args...)
	if err != nil {
		return false, fmt.Errorf("cannot read what the database is of: %w", err)
	}
	return ok, nil
}
