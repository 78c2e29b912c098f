package store

import (
	"context"
	"database/sql"
	"fmt"
	"strings"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/quota"
)

// quotaRow is the limits of a user as stored in their table.
type quotaRow struct {
	VMs         sql.NullInt64 `db:"vms"`
	VCPUs       sql.NullInt64 `db:"vcpus"`
	Memory      sql.NullInt64 `db:"memory_mib"`
	Disk        sql.NullInt64 `db:"disk_mib"`
	Snapshots   sql.NullInt64 `db:"snapshots"`
	SnapshotMiB sql.NullInt64 `db:"snapshot_mib"`
	ImageMiB    sql.NullInt64 `db:"image_mib"`
	Routes      sql.NullInt64 `db:"routes"`
	Webhooks    sql.NullInt64 `db:"webhooks"`
}

// fields are the row's values by resource; a column has the name of its resource.
func (r *quotaRow) fields() map[quota.Resource]*sql.NullInt64 {
	return map[quota.Resource]*sql.NullInt64{
		quota.VMs: &r.VMs, quota.VCPUs: &r.VCPUs, quota.Memory: &r.Memory, quota.Disk: &r.Disk,
		quota.Snapshots: &r.Snapshots, quota.SnapshotMiB: &r.SnapshotMiB, quota.ImageMiB: &r.ImageMiB,
		quota.Routes: &r.Routes, quota.Webhooks: &r.Webhooks,
	}
}

func (r *quotaRow) own() quota.Own {
	own := quota.Own{}
	for resource, value := range r.fields() {
		if value.Valid {
			own[resource] = value.Int64
		}
	}
	return own
}

// LimitUsers sets the server's limits, which users have that have none of their own.
// Call it before any write.
func (s *database) LimitUsers(limits quota.Limits) { s.limits = limits }

// Usage returns what a user may own, and owns. An unknown user owns nothing.
func (s *quotaStore) Usage(ctx context.Context, userID string) (u quota.Usage, err error) {
	if !storable(userID) {
		return quota.Usage{}, nil
	}
	err = s.read(ctx, func(q querier) error {
		u, err = usageOfUser(ctx, q, s.limits, userID)
		return err
	})
	return u, err
}

func usageOfUser(ctx context.Context, q querier, server quota.Limits, userID string) (u quota.Usage, err error) {
	u.UserID = userID
	if u.Own, err = ownLimits(ctx, q, userID); err != nil {
		return u, err
	}
	u.Limits = server.With(u.Own)
	if userID == access.SystemID {
		u.Limits = quota.Limits{}
	}
	all := quota.Amounts{}
	for _, r := range quota.Resources {
		all[r] = 1
	}
	u.Used, err = owned(ctx, q, userID, all)
	return u, err
}

func ownLimits(ctx context.Context, q querier, userID string) (quota.Own, error) {
	var row quotaRow
	if _, err := get(ctx, q, &row, "SELECT "+columnsOf(quota.Resources)+" FROM quotas WHERE owner_id = ?", userID); err != nil {
		return nil, fmt.Errorf("cannot read a quota: %w", err)
	}
	return row.own(), nil
}

func columnsOf(all []quota.Resource) string {
	names := make([]string, len(all))
	for i, r := range all {
		names[i] = string(r)
	}
	return strings.Join(names, ", ")
}

// UserUsage is Usage of the user with this id or name. Errors: errs.NotFound with code
// user_not_found.
func (s *quotaStore) UserUsage(ctx context.Context, idOrName string) (u quota.Usage, err error) {
	if !storable(idOrName) {
		return u, errNoUser
	}
	err = s.read(ctx, func(q querier) error {
		userID, err := findUser(ctx, q, idOrName)
		if err == nil {
			u, err = usageOfUser(ctx, q, s.limits, userID)
		}
		return err
	})
	return u, err
}

// findUser returns the id of the user with this id or name; an id takes precedence.
func findUser(ctx context.Context, q querier, idOrName string) (userID string, err error) {
	found, err := get(ctx, q, &userID, "SELECT id FROM users WHERE id <> ? AND (id = ? OR name = ?) ORDER BY CASE WHEN id = ? THEN 0 ELSE 1 END LIMIT 1", access.SystemID, idOrName, idOrName, idOrName)
	if err == nil && !found {
		err = errNoUser
	}
	return userID, err
}

// SetQuota changes the own limits of the user with this id or name, unless change returns
// an error. Errors: errs.NotFound with code user_not_found; errs.Invalid.
func (s *quotaStore) SetQuota(ctx context.Context, idOrName string, change func(quota.Usage) (quota.Own, error)) (u quota.Usage, err error) {
	if !storable(idOrName) {
		return u, errNoUser
	}
	err = s.write(ctx, func(tx *tx) error {
		userID, err := findUser(ctx, tx, idOrName)
		if err != nil {
			return err
		}
		if err := lockQuota(ctx, tx, userID); err != nil {
			return err
		}
		before, err := usageOfUser(ctx, tx, s.limits, userID)
		if err != nil {
			return err
		}
		own, err := change(before)
		if err == nil {
			err = own.Check()
		}
		if err == nil {
			err = storeQuota(ctx, tx, userID, own)
		}
		if err != nil {
			return err
		}
		u, err = usageOfUser(ctx, tx, s.limits, userID)
		return err
	})
	return u, err
}

func storeQuota(ctx context.Context, t *tx, userID string, own quota.Own) error {
	sets := make([]string, len(quota.Resources))
	args := make([]any, len(quota.Resources), len(quota.Resources)+1)
	for i, r := range quota.Resources {
		most, set := own[r]
		sets[i], args[i] = string(r)+" = ?", sql.NullInt64{Int64: most, Valid: set}
	}
	if _, err := t.exec(ctx, "UPDATE quotas SET "+strings.Join(sets, ", ")+" WHERE owner_id = ?", append(args, userID)...); err != nil {
		return fmt.Errorf("cannot store a quota: %w", err)
	}
	return nil
}

// lockQuota blocks other transactions that call it for the user until this one ends.
func lockQuota(ctx context.Context, t *tx, userID string) error {
	_, err := t.exec(ctx, "INSERT INTO quotas (owner_id) VALUES (?) ON CONFLICT (owner_id) DO UPDATE SET owner_id = excluded.owner_id", userID)
	if err != nil {
		return fmt.Errorf("cannot lock a quota: %w", err)
	}
	return nil
}

// checkQuota returns an error if a user would own more than its quota allows. Of two
// transactions that ask for the same user the second waits for the end of the first, so
// call it after rows of VMs are locked, and before anything is counted or inserted.
// Errors: quota.Limits.Check's.
func (t *tx) checkQuota(ctx context.Context, userID string, asked quota.Amounts) error {
	if userID == access.SystemID {
		return nil
	}
	own, err := ownLimits(ctx, t, userID)
	if err != nil || !t.limits.With(own).Limited(asked) {
		return err
	}
	if err := lockQuota(ctx, t, userID); err != nil {
		return err
	}
	if own, err = ownLimits(ctx, t, userID); err != nil { // it may have changed meanwhile
		return err
	}
	used, err := owned(ctx, t, userID, asked)
	if err != nil {
		return err
	}
	return t.limits.With(own).Check(used, asked)
}

// owned returns how much a user owns of those resources that are asked for.
func owned(ctx context.Context, q querier, userID string, asked quota.Amounts) (quota.Amounts, error) {
	used := quota.Amounts{}
	for _, count := range counters {
		for _, r := range count.of {
			if asked[r] <= 0 {
				continue
			}
			if err := count.add(ctx, q, userID, used); err != nil {
				return nil, fmt.Errorf("cannot count what a user owns: %w", err)
			}
			break
		}
	}
	return used, nil
}

// counters count resources that one query finds.
var counters = []struct {
	of  []quota.Resource
	add func(ctx context.Context, q querier, userID string, used quota.Amounts) error
}{
	{[]quota.Resource{quota.VMs, quota.VCPUs, quota.Memory, quota.Disk}, countOwnedVMs},
	{[]quota.Resource{quota.Snapshots, quota.SnapshotMiB}, countSnapshots},
	{[]quota.Resource{quota.ImageMiB}, countImages},
	{[]quota.Resource{quota.Routes}, countRows("routes", quota.Routes)},
	{[]quota.Resource{quota.Webhooks}, countRows("webhooks", quota.Webhooks)},
}

func countOwnedVMs(ctx context.Context, q querier, userID string, used quota.Amounts) error {
	var sum ownedVMs
	_, err := get(ctx, q, &sum, `SELECT COALESCE(SUM(vms), 0) AS vms, COALESCE(SUM(vcpus), 0) AS vcpus, COALESCE(SUM(memory_mib), 0) AS memory_mib,
		COALESCE(SUM(disk_mib), 0) AS disk_mib FROM owned_vms WHERE owner_id = ?`, userID)
	used[quota.VMs], used[quota.VCPUs], used[quota.Memory], used[quota.Disk] = sum.VMs, sum.VCPUs, sum.MemMiB, sum.DiskMiB
	return err
}

// countSnapshots counts one that is being taken with the size that was estimated.
func countSnapshots(ctx context.Context, q querier, userID string, used quota.Amounts) error {
	var sum struct {
		Count int64 `db:"number"`
		MiB   int64 `db:"mib"`
	}
	_, err := get(ctx, q, &sum, "SELECT COUNT(*) AS number, COALESCE(CAST(SUM((bytes + 1048575) / 1048576) AS BIGINT), 0) AS mib FROM snapshots WHERE owner_id = ?", userID)
	used[quota.Snapshots], used[quota.SnapshotMiB] = sum.Count, sum.MiB
	return err
}

// countImages adds up the sizes in the rows: users have few images.
func countImages(ctx context.Context, q querier, userID string, used quota.Amounts) error {
	var rows []imageRow
	if err := selectAll(ctx, q, &rows, selectImage+" WHERE owner_id = ?", userID); err != nil {
		return err
	}
	for _, row := range rows {
		i, err := row.image(nil)
		if err != nil {
			return err
		}
		used[quota.ImageMiB] += imageMiB(i)
	}
	return nil
}

func imageMiB(i image.Image) int64 { return quota.MiB(i.Kernel.Size + i.Rootfs.Size) }

func countRows(table string, r quota.Resource) func(context.Context, querier, string, quota.Amounts) error {
	return func(ctx context.Context, q querier, userID string, used quota.Amounts) error {
		var count int64
		_, err := get(ctx, q, &count, "SELECT COUNT(*) FROM "+table+" WHERE owner_id = ?", userID)
		used[r] = count
		return err
	}
}
