package store

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jmoiron/sqlx"
	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vmm"
)

// many makes n VMs, with some that share memory.
func many(t testing.TB, s *Store, n int) network.Pools {
	t.Helper()
	ctx := context.Background()
	noError(t, s.UpsertImage(ctx, anyImage()))
	p := poolsOf(t, "10.9.0.1/16", 20_000)
	all := make([]vm.VM, n)
	for i := range all {
		all[i] = newVM(fmt.Sprintf("vm_abc123%06d", i))
		all[i].Machine.Base = vmm.Shared{Inode: uint64(i % 3), Bytes: int64(i%3) << 20}
	}
	for batch := range slices.Chunk(all, 40) {
		_, err := s.CreateVMs(ctx, batch, p, vm.Capacity{})
		noError(t, err)
		if batch[0].ID == all[0].ID {
			s.analyze(t)
		}
	}
	for i := range min(n, 200) {
		noError(t, insertSnapshotIn(ctx, s, snapshot.Snapshot{ID: fmt.Sprintf("snap_%06d", i), OwnerID: "acc_a", Name: fmt.Sprintf("s%d", i), VM: snapshot.Origin{Spec: machine.Spec{ImageID: "img_a"}}, CreatedAt: now()}))
	}
	s.analyze(t)
	return p
}

// analyze has the database look at its tables, as PostgreSQL does in the background.
func (s *Store) analyze(t testing.TB) {
	t.Helper()
	_, err := s.writes.ExecContext(context.Background(), "ANALYZE")
	noError(t, err)
}

// requests are what the store does for requests about one VM, in an order in which they
// can be repeated.
func requests(ctx context.Context, s *Store, p network.Pools) []request {
	limit := vm.Capacity{MemMiB: 1 << 40, DiskMiB: 1 << 40}
	owner := access.Owner("acc_a")
	create := func(id string) func() error {
		return func() error {
			_, err := s.CreateVM(ctx, newVM(id), network.Request{}, p, limit)
			return err
		}
	}
	list := func(f vm.Filter) func() error {
		return func() error {
			_, _, err := s.VMs(ctx, owner, f)
			return err
		}
	}
	update := func(change func(*vm.VM)) func() error {
		return func() error {
			_, err := s.UpdateVM(ctx, "vm_x", change)
			return err
		}
	}
	return []request{
		{"create", create("vm_x")},
		{"get", func() error { _, err := s.VM(ctx, owner, "vm_x"); return err }},
		{"find by name", list(vm.Filter{Name: "name-x"})},
		{"find by state", list(vm.Filter{State: vm.Failed, Limit: 5})},
		{"list a page", list(vm.Filter{Limit: 5})},
		{"find a snapshot by name", func() error { _, err := s.Snapshot(ctx, owner, "s7"); return err }},
		{"make a route", func() error {
			_, err := s.InsertRoute(ctx, owner, fullRoute("vm_x", "route-x"), 10)
			return err
		}},
		{"list the routes of a VM", func() error { _, err := s.Routes(ctx, owner, "vm_x"); return err }},
		{"resolve a subdomain", func() error { _, _, err := s.ServedRoute(ctx, "route-x", ""); return err }},
		{"resolve a domain", func() error {
			if _, _, err := s.ServedRoute(ctx, "", "www.example.org"); !errs.HasCode(err, "route_not_found") {
				return err
			}
			return nil
		}},
		{"resolve the name of a VM", func() error { _, err := s.VMNamed(ctx, "", "name-x"); return err }},
		{"fail", update(func(v *vm.VM) { v.State, v.Machine = vm.Failed, nil })},
		{"release", func() error { return s.ReleaseVM(ctx, "vm_x") }},
		{"create in the gap", create("vm_y")},
		{"lease", func() error { _, err := s.LeaseVM(ctx, "vm_x", p, limit); return err }},
		{"check memory", func() error { return s.CheckMemory(ctx, vm.VM{ID: "vm_x"}, limit) }},
		{"read shared memory", func() error { _, err := s.SharedMemory(ctx); return err }},
		{"delete", func() error { return s.DeleteVM(ctx, "vm_x") }},
		{"delete the other", func() error { return s.DeleteVM(ctx, "vm_y") }},
	}
}

type request struct {
	name string
	do   func() error
}

// What a request visits in the database does not depend on the number of VMs. SQLite
// counts pages, PostgreSQL rows and entries of indexes.
func TestRequestsVisitAFewRows(t *testing.T) {
	for _, b := range backends() {
		t.Run(b.name, func(t *testing.T) {
			few, lots := visits(t, b, 40), visits(t, b, 800)
			for _, name := range slices.Sorted(maps.Keys(few)) {
				t.Logf("%-24s %4d, %4d", name, few[name], lots[name])
				if lots[name] > few[name]*3/2+10 {
					t.Errorf("%s: visits %d of 40 VMs, %d of 800", name, few[name], lots[name])
				}
			}
		})
	}
}

// visits returns what each request visits, once its statements are prepared.
func visits(t *testing.T, b backend, n int) map[string]int {
	t.Helper()
	s := open(t, b.dsn(t))
	p := many(t, s, n)
	visited := map[string]int{}
	for range 2 {
		for _, r := range requests(t.Context(), s, p) {
			before := s.visited(t)
			if err := r.do(); err != nil {
				t.Fatalf("%s: %v", r.name, err)
			}
			visited[r.name] = s.visited(t) - before
		}
	}
	checkCounts(t, s)
	return visited
}

// visited returns how much of the database has been visited so far.
func (s *Store) visited(t *testing.T) (n int) {
	t.Helper()
	if s.dialect == goose.DialectPostgres {
		s.reads.SetMaxOpenConns(2) // one has the lock
		_, err := s.reads.ExecContext(t.Context(), "SELECT pg_stat_force_next_flush()")
		noError(t, err)
		noError(t, s.reads.Get(&n, `SELECT (SELECT SUM(seq_tup_read + COALESCE(idx_tup_fetch, 0)) FROM pg_stat_user_tables)
			+ (SELECT SUM(idx_tup_read) FROM pg_stat_user_indexes)`))
		return n
	}
	s.eachConn(t, func(c *preparedConn) error {
		for _, op := range []sqlite.DBStatusOp{sqlite.DBStatusCacheHit, sqlite.DBStatusCacheMiss} {
			pages, _, err := c.Unwrap().(sqlite.DBStatus).Status(op, false)
			if err != nil {
				return err
			}
			n += pages
		}
		return nil
	})
	return n
}

// eachConn calls do with the connection for reads and that for writes.
func (s *Store) eachConn(t *testing.T, do func(*preparedConn) error) {
	t.Helper()
	s.reads.SetMaxOpenConns(1)
	for _, pool := range []*sqlx.DB{s.reads, s.writes} {
		conn, err := pool.Conn(t.Context())
		noError(t, err)
		noError(t, conn.Raw(func(c any) error { return do(c.(*preparedConn)) }))
		noError(t, conn.Close())
	}
}

// walks are the plans of SQLite that visit all VMs, of a host or an owner.
var walks = regexp.MustCompile(`^SCAN (vms|v|vm_\w+|numbers|snapshots|routes|idempotency_keys)|(vms|v|numbers|snapshots|routes) USING .*INDEX \w+ \((host_id|owner_id|state)=\?\)$`)

// The statements of requests, which are prepared once, walk along no table.
func TestStatementsOfRequests(t *testing.T) {
	s := open(t, sqliteDSNFor(t))
	p := many(t, s, 40)
	s.eachConn(t, func(c *preparedConn) error {
		for query, stmt := range c.idle {
			noError(t, stmt.Close())
			delete(c.idle, query)
		}
		return nil
	})
	texts := map[string]bool{}
	for _, r := range requests(t.Context(), s, p) {
		noError(t, r.do())
	}
	s.eachConn(t, func(c *preparedConn) error {
		for query := range c.idle {
			texts[query] = true
		}
		return nil
	})
	if len(texts) < 30 || len(texts) > maxStatements/2 {
		t.Errorf("%d statements", len(texts))
	}
	for query := range texts {
		for _, step := range s.plan(t, query) {
			if walks.MatchString(step) && !strings.Contains(query, "LIMIT") {
				t.Errorf("%s: %s", step, query)
			}
		}
	}
	if plan := s.plan(t, "SELECT id FROM vms WHERE owner_id = ? AND name = ?"); !slices.ContainsFunc(plan, walks.MatchString) {
		t.Errorf("a walk is not found in %q", plan)
	}
}

// plan returns the steps of SQLite's plan of a query.
func (s *Store) plan(t *testing.T, query string) (steps []string) {
	t.Helper()
	var rows []struct {
		ID      int    `db:"id"`
		Parent  int    `db:"parent"`
		NotUsed int    `db:"notused"`
		Detail  string `db:"detail"`
	}
	noError(t, s.reads.Select(&rows, "EXPLAIN QUERY PLAN "+query, make([]any, strings.Count(query, "?"))...))
	for _, r := range rows {
		steps = append(steps, r.Detail)
	}
	return steps
}

func allOwned(t testing.TB, tx *tx) (all []ownedVMs) {
	t.Helper()
	noError(t, selectAll(context.Background(), tx, &all, "SELECT vms, vcpus, memory_mib, disk_mib FROM owned_vms ORDER BY owner_id, host_id"))
	return all
}

// checkCounts compares what the store keeps about all VMs with the VMs.
func checkCounts(t testing.TB, s *Store) {
	t.Helper()
	ctx := context.Background()
	noError(t, s.write(ctx, func(tx *tx) error {
		kept, err := usageOf(ctx, tx, s.host)
		noError(t, err)
		owned := allOwned(t, tx)
		noError(t, tx.countUsage(ctx))
		equal(t, owned, allOwned(t, tx))
		counted, err := usageOf(ctx, tx, s.host)
		noError(t, err)
		equal(t, usageByGroup(kept), usageByGroup(counted))
		return nil
	}))
	noError(t, s.write(ctx, func(tx *tx) error {
		ports, err := tx.countPorts(ctx)
		noError(t, err)
		for port, owner := range ports {
			equal(t, count(t, s, fmt.Sprintf("numbers WHERE kind = 'ssh_port' AND number = %d AND owner_id = '%s' AND released_at IS NULL", port, owner)), 1)
		}
		return nil
	}))
	for _, kind := range numberKinds {
		missing := "vms v WHERE " + kind.column + " IS NOT NULL AND NOT EXISTS (SELECT 1 FROM numbers n WHERE n.host_id = v.host_id AND n.kind = '" + kind.column +
			"' AND n.number = v." + kind.column + " AND n.owner_id = v.owner_id AND n.released_at IS NULL)"
		if n := count(t, s, missing); n > 0 {
			t.Errorf("%d values of %s are missing", n, kind.column)
		}
		has := "v." + kind.column + " = n.number"
		if kind.column == columnSSHPort {
			has = "(" + has + " OR v.ports LIKE '%:' || n.number || ',%' OR v.ports LIKE '%:' || n.number || '}%')"
		}
		left := "numbers n WHERE kind = '" + kind.column + "' AND released_at IS NULL AND NOT EXISTS (SELECT 1 FROM vms v WHERE v.host_id = n.host_id AND " + has + ")"
		if n := count(t, s, left); n > 0 {
			t.Errorf("%d values of %s that no VM has are in use", n, kind.column)
		}
	}
	wrong := `numbers n WHERE COALESCE(next_free, 0) <> CASE WHEN EXISTS
		(SELECT 1 FROM numbers m WHERE m.host_id = n.host_id AND m.kind = n.kind AND m.number = n.number + 1) THEN 0 ELSE number + 1 END`
	if n := count(t, s, wrong); n > 0 {
		t.Errorf("%d numbers are wrong about the number after them", n)
	}
}

func usageByGroup(rows []usageRow) map[usageGroup]usage {
	all := map[usageGroup]usage{}
	for _, r := range rows {
		all[r.usageGroup] = r.usage
	}
	return all
}

// VMs of a database from before the numbers were stored keep theirs, also when the host
// has another id since; what was released shortly before stays out of use.
func TestNumbersOfEarlierVersions(t *testing.T) {
	for _, b := range backends() {
		t.Run(b.name, func(t *testing.T) {
			s := openAt(t, b.dsn(t), 7)
			anOldImage(t, s)
			insertOld(t, s)
			m, err := s.migrator()
			noError(t, err)
			_, err = m.UpTo(t.Context(), 12)
			noError(t, err)
			s.mustExec(t, "INSERT INTO released (host_id, kind, number, owner_id, released_at) VALUES (?, 'ssh_port', 20023, 'acc_a', ?)", testHost, micros(now()))
			noError(t, s.prepare(t.Context(), Directory{HostID: testHost}))
			checkCounts(t, s)
			p := coolingPools(t, "10.9.0.1/24", 50)
			p.SSHMin, p.SSHMax, p.UIDMin = 20022, 20030, 900001
			l := leaseOf(t, s, "vm_new", network.Request{}, p)
			if l.Address != addr("10.9.0.3") || l.SSHPort != 20024 || l.UID != 900002 || l.Tap != "tap0" {
				t.Errorf("lease %+v", l)
			}
			checkCounts(t, s)
			_, err = m.DownTo(t.Context(), 12)
			noError(t, err)
			if n := count(t, s, "released"); n != 1 {
				t.Errorf("%d releases after the way down", n)
			}
		})
	}
}

// What requests cost among 1,000 and 9,000 VMs.
func BenchmarkRequests(b *testing.B) {
	for _, db := range backends() {
		for _, n := range []int{1000, 9000} {
			b.Run(fmt.Sprintf("%s/%d", db.name, n), func(b *testing.B) {
				s := open(b, db.dsn(b))
				all := requests(context.Background(), s, many(b, s, n))
				for i, measured := range all {
					b.Run(measured.name, func(b *testing.B) {
						for range b.N {
							for j, r := range all {
								if j == i {
									b.StartTimer()
								}
								noError(b, r.do())
								b.StopTimer()
							}
						}
					})
				}
			})
		}
	}
}
