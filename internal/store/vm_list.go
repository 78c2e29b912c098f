package store

import (
	"context"
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/jmoiron/sqlx"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vm"
)

// VMs implements [vm.Store]. UserData is left out of what it returns.
//
// A page is read in two steps: which VMs are on it, at which revision; then
// those whose revision is not the one that was read before. The first step is
// answered from an index; the second is mostly empty, and decoding a VM costs
// more than reading it.
func (s *Store) VMs(ctx context.Context, owner string, f vm.Filter) (page []vm.VM, next string, err error) {
	after, err := parseCursor(f.After)
	if err != nil {
		return nil, "", err
	}
	query, args, possible := pageQuery(owner, f, after)
	if !possible {
		return nil, "", nil
	}
	var entries []pageEntry
	if err := selectAll(ctx, s.reads, &entries, query, args...); err != nil {
		return nil, "", fmt.Errorf("cannot list VMs: %w", err)
	}
	if f.Limit > 0 && len(entries) > f.Limit {
		entries = entries[:f.Limit]
		last := entries[f.Limit-1]
		next = cursor{last.CreatedAt, last.ID}.String()
	}
	page, err = s.listedVMs(ctx, entries)
	return page, next, err
}

// pageEntry says that a VM is on a page.
type pageEntry struct {
	ID        string `db:"id"`
	CreatedAt int64  `db:"created_at"`
	Revision  int64  `db:"revision"`
}

// pageQuery finds one entry more than the page holds, to tell whether there is
// a next one. possible is false when nothing can match.
func pageQuery(owner string, f vm.Filter, after cursor) (query string, args []any, possible bool) {
	where := []string{"owner_id = ?"}
	args = []any{owner}
	and := func(condition string, values ...any) {
		where = append(where, condition)
		args = append(args, values...)
	}
	possible = storable(owner, string(f.State), f.Name)
	if f.State != "" {
		and("state = ?", string(f.State))
	}
	if f.Name != "" {
		and("name = ?", f.Name)
	}
	for _, label := range slices.Sorted(maps.Keys(f.Labels)) {
		possible = possible && storable(label, f.Labels[label])
		and("EXISTS (SELECT 1 FROM vm_labels l WHERE l.vm_id = vms.id AND l.label = ? AND l.value = ?)", label, f.Labels[label])
	}
	if after.id != "" {
		and("(created_at, id) < (?, ?)", after.createdAt, after.id)
	}
	query = "SELECT id, created_at, revision FROM vms WHERE " + strings.Join(where, " AND ") + " ORDER BY created_at DESC, id DESC"
	if f.Limit > 0 {
		query += " LIMIT " + strconv.Itoa(f.Limit+1)
	}
	return query, args, possible
}

// listedVMs returns the VMs of entries, in their order. One that was deleted
// in the meantime is left out.
func (s *Store) listedVMs(ctx context.Context, entries []pageEntry) ([]vm.VM, error) {
	page, missing := s.listed.take(entries)
	if len(missing) == 0 {
		return page, nil
	}
	read := map[string]vm.VM{}
	for chunk := range slices.Chunk(missing, idsPerQuery) {
		if err := s.readListed(ctx, chunk, read); err != nil {
			return nil, err
		}
	}
	for i, e := range entries {
		if page[i].ID == "" {
			page[i] = read[e.ID]
		}
	}
	return slices.DeleteFunc(page, func(v vm.VM) bool { return v.ID == "" }), nil
}

func (s *Store) readListed(ctx context.Context, ids []string, into map[string]vm.VM) error {
	query, args, err := sqlx.In(selectListedVM+" WHERE id IN (?)", ids)
	if err != nil {
		return fmt.Errorf("cannot list VMs: %w", err)
	}
	var rows []vmRow
	if err := selectAll(ctx, s.reads, &rows, query, args...); err != nil {
		return fmt.Errorf("cannot list VMs: %w", err)
	}
	labels, err := labelsOf(ctx, s.reads, ids)
	if err != nil {
		return err
	}
	vms := make([]vm.VM, len(rows))
	for i, row := range rows {
		if vms[i], err = row.vm(labels[row.ID]); err != nil {
			return err
		}
	}
	if err := addSleeps(ctx, s.reads, vms); err != nil {
		return err
	}
	for i, v := range vms {
		s.listed.keep(rows[i].Revision, v)
		into[v.ID] = own(v)
	}
	return nil
}

// listed remembers VMs as lists show them, by id, each with the revision of
// its row. An entry is used only while the database still has that revision.
type listed struct {
	mu sync.Mutex
	by map[string]*revised
}

type revised struct {
	revision int64
	vm       vm.VM // not changed once it is here
}

func newListed() *listed { return &listed{by: map[string]*revised{}} }

// take returns the VMs that are remembered as they are now, each in its
// entry's place, and the ids of the others, whose places are zero.
func (l *listed) take(entries []pageEntry) (page []vm.VM, missing []string) {
	known := make([]*revised, len(entries))
	l.mu.Lock()
	for i, e := range entries {
		known[i] = l.by[e.ID]
	}
	l.mu.Unlock()
	page = make([]vm.VM, len(entries))
	for i, e := range entries {
		if known[i] != nil && known[i].revision == e.Revision {
			page[i] = own(known[i].vm)
		} else {
			missing = append(missing, e.ID)
		}
	}
	return page, missing
}

func (l *listed) keep(revision int64, v vm.VM) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if known, ok := l.by[v.ID]; !ok || known.revision < revision {
		l.by[v.ID] = &revised{revision, v}
	}
}

func (l *listed) forget(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.by, id)
}

// own returns a copy that shares nothing a caller could change.
func own(v vm.VM) vm.VM {
	v.Labels = maps.Clone(v.Labels)
	v.SSHKeys = slices.Clone(v.SSHKeys)
	v.Lease.MAC = slices.Clone(v.Lease.MAC)
	if v.Machine != nil {
		machine := *v.Machine
		v.Machine = &machine
	}
	if v.Sleep != nil {
		sleep := *v.Sleep
		v.Sleep = &sleep
	}
	if v.StartedAt != nil {
		started := *v.StartedAt
		v.StartedAt = &started
	}
	return v
}

// cursor is a place in the order of lists. It names no row, so it stays good
// when the VM it was taken from is deleted.
type cursor struct {
	createdAt int64
	id        string
}

func (c cursor) String() string {
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%d.%s", c.createdAt, c.id))
}

// parseCursor reads what String wrote; "" is the start of the list.
func parseCursor(text string) (cursor, error) {
	if text == "" {
		return cursor{}, nil
	}
	wrong := errs.InvalidField("after", "this is not a cursor that a list gave out").
		WithHint("follow the Link header of the page before, or leave after out")
	plain, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return cursor{}, wrong
	}
	at, id, _ := strings.Cut(string(plain), ".")
	createdAt, err := strconv.ParseInt(at, 10, 64)
	if err != nil || id == "" || !storable(id) {
		return cursor{}, wrong
	}
	return cursor{createdAt, id}, nil
}
