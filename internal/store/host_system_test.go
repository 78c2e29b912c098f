//go:build system

package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/secret"
)

// holdDatabase names a database that the test program opens and keeps open.
const holdDatabase = "HATCH_TEST_HOLD_DATABASE"

func hold(dsn string) {
	if _, err := OpenFor(context.Background(), dsn, Directory{HostID: "host_other", Keys: fixedKey{}}); err != nil {
		_, _ = fmt.Fprintln(os.Stdout, err)
		os.Exit(1)
	}
	_, _ = fmt.Fprintln(os.Stdout, "open")
	select {}
}

// A hatchd has exclusive use of its database until it ends, even by SIGKILL.
func TestOneHatchdPerDatabase(t *testing.T) {
	dsn := postgresDSNFor(t)
	other := exec.Command(os.Args[0])
	other.Env = append(os.Environ(), holdDatabase+"="+dsn)
	out, err := other.StdoutPipe()
	noError(t, err)
	noError(t, other.Start())
	ended := func() { _ = other.Process.Kill(); _ = other.Wait() }
	defer ended()
	line, _ := bufio.NewReader(out).ReadString('\n')
	equal(t, line, "open\n")
	if _, err := Open(t.Context(), dsn, testHost); !errors.Is(err, errDatabaseInUse) {
		t.Fatalf("beside another: %v", err)
	}
	ended()
	again, err := OpenFor(t.Context(), dsn, Directory{HostID: testHost, Keys: fixedKey{}})
	noError(t, err)
	noError(t, again.Close())
}

// fixedKey is a key file that both processes have.
type fixedKey struct{}

func (fixedKey) Load() (secret.Identities, error) {
	return secret.ParseIdentities([]byte("AGE-SECRET-KEY-1WZQMF69Q0K70QS2JZKKWDA66E77J8AL2U8656P2D29XZ42JZSC4Q39QUMA"))
}

func (k fixedKey) Create() (secret.Identities, error) { return k.Load() }

// A restart of the server releases the lock.
func TestLostLockIsAcquiredAgain(t *testing.T) {
	dsn := postgresDSNFor(t)
	s := open(t, dsn)
	endLock := func() {
		t.Helper()
		_, err := s.writes.Exec("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())")
		noError(t, err)
	}
	rival, err := openPostgres(dsn)
	noError(t, err)
	defer func() { noError(t, rival.Close()) }()

	endLock()
	noError(t, s.Ping(t.Context()))
	if err := rival.lock.hold(t.Context(), 0); !errors.Is(err, errDatabaseInUse) {
		t.Errorf("after the lock was taken again: %v", err)
	}
	endLock()
	noError(t, rival.lock.hold(t.Context(), time.Second))
	if err := s.Ping(t.Context()); !errors.Is(err, errDatabaseInUse) {
		t.Errorf("after another has it: %v", err)
	}
}
