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

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vm"
)

// VMs implements [vm.Store]. The returned VMs have no UserData.
//
// A page is read in two steps: first the ids and revisions of its VMs, from an
// index; then the rows of VMs whose revision is not in the cache. Mostly there are
// few of the latter, which saves decoding: it costs more than reading.
func (s *vmStore) VMs(ctx context.Context, scope access.Scope, f vm.Filter) (page []vm.VM, next string, err error) {
	after, err := parseCursor(f.After)
	if err != nil {
		return nil, "", err
	}
	query, args, possible := pageQuery(scope, f, after)
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

// CountVMs returns the number of VMs in scope.
func (s *vmStore) CountVMs(ctx context.Context, scope access.Scope) (count int, err error) {
	owned, args := inScope(scope)
	if _, err := get(ctx, s.reads, &count, "SELECT COUNT(*) FROM vms WHERE "+owned, args...); err != nil {
		return 0, fmt.Errorf("cannot count VMs: %w", err)
	}
	return count, nil
}

// pageEntry is the entry of one VM on a page.
type pageEntry struct {
	ID        string `db:"id"`
	CreatedAt int64  `db:"created_at"`
	Revision  int64  `db:"revision"`
}

// pageQuery selects one entry more than the page holds, to find out whether there is
// a next page. possible is false if no VM can match.
func pageQuery(scope access.Scope, f vm.Filter, after cursor) (query string, args []any, possible bool) {
	owned, args := inScope(scope)
	where := []string{owned}
	and := func(condition string, values ...any) {
		where = append(where, condition)
		args = append(args, values...)
	}
	possible = storable(string(f.State), f.Name)
	if f.State != "" {
		and("state = ?", string(f.State))
	}
	if f.Name != "" {
		and("name = ? AND name <> ''", f.Name) // else the index of names that are not empty is of no use
	}
	for _, label := range slices.Sorted(maps.Keys(f.Labels)) {
		possible = possible && storable(label, f.Labels[label])
		and("EXISTS (SELECT 1 FROM vm_labels l WHERE l.vm_id = vms.id AND l.label = ? AND l.value = ?)", label, f.Labels[label])
	}
	for _, key := range f.HasLabels {
		possible = possible && storable(key)
		and("EXISTS (SELECT 1 FROM vm_labels l WHERE l.vm_id = vms.id AND l.label = ?)", key)
	}
	for _, label := range f.NotLabels {
		if storable(label.Key, label.Value) { // else no VM has it
			and("NOT EXISTS (SELECT 1 FROM vm_labels l WHERE l.vm_id = vms.id AND l.label = ? AND l.value = ?)", label.Key, label.Value)
		}
	}
	if after.id != "" {
		and("(created_at, id) < (?, ?)", after.createdAt, after.id)
	}
	query = "SELECT id, created_at, revision FROM vms WHERE " + strings.Join(where, " AND ") + " ORDER BY created_at DESC, id DESC"
	if f.Limit > 0 {
		query, args = query+" LIMIT ?", append(args, f.Limit+1)
	}
	return query, args, possible
}

// listedVMs returns the VMs of entries, in their order. VMs that were
// deleted meanwhile are left out.
func (s *vmStore) listedVMs(ctx context.Context, entries []pageEntry) ([]vm.VM, error) {
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

func (s *vmStore) readListed(ctx context.Context, ids []string, into map[string]vm.VM) error {
	query, args, err := sqlx.In(selectListedVM+" WHERE id IN (?)", ids)
	if err != nil {
		return fmt.Errorf("cannot list VMs: %w", err)
	}
	var vms []vm.VM
	err = s.read(ctx, func(q querier) error {
		vms, err = selectVMs(ctx, q, s.keys, query, args...)
		return err
	})
	if err != nil {
		return err
	}
	for _, v := range vms {
		s.listed.keep(v)
		into[v.ID] = own(v)
	}
	return nil
}

// listed caches VMs without user data, by id. An entry is used only while its
// revision is still the one in the database.
type listed struct {
	mu sync.Mutex
	by map[string]*vm.VM // never modified once stored
}

func newListed() *listed { return &listed{by: map[string]*vm.VM{}} }

// take returns the cached VMs whose revision is current, each at its entry's index,
// and the ids of the others, whose elements are zero.
func (l *listed) take(entries []pageEntry) (page []vm.VM, missing []string) {
	known := make([]*vm.VM, len(entries))
	l.mu.Lock()
	for i, e := range entries {
		known[i] = l.by[e.ID]
	}
	l.mu.Unlock()
	page = make([]vm.VM, len(entries))
	for i, e := range entries {
		if known[i] != nil && known[i].Revision == e.Revision {
			page[i] = own(*known[i])
		} else {
			missing = append(missing, e.ID)
		}
	}
	return page, missing
}

func (l *listed) keep(v vm.VM) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if known, ok := l.by[v.ID]; !ok || known.Revision < v.Revision {
		l.by[v.ID] = &v
	}
}

func (l *listed) forget(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.by, id)
}

// own returns a deep copy, which the caller may modify.
func own(v vm.VM) vm.VM {
	v.Labels = maps.Clone(v.Labels)
	v.SSHKeys = slices.Clone(v.SSHKeys)
	v.Lease.MAC, v.Lease.Ports = slices.Clone(v.Lease.MAC), maps.Clone(v.Lease.Ports)
	v.Ports = slices.Clone(v.Ports)
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

// cursor is a position in the order of lists. It refers to no row, so it stays valid
// when the VM at that position is deleted.
type cursor struct {
	createdAt int64
	id        string
}

func (c cursor) String() string {
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%d.%s", c.createdAt, c.id))
}

// parseCursor parses the result of String; "" is the start of the list.
func parseCursor(text string) (cursor, error) {
	if text == "" {
		return cursor{}, nil
	}
	wrong := errs.InvalidField("after", "is not a valid cursor").
		WithHint("follow the Link header of the previous page, or leave after out")
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
