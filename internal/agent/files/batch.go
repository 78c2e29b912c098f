package files

import (
	"time"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

// batch collects changes that are reported together. It reports successive writes to a
// file once, and joins the two events of a rename.
type batch struct {
	changes []wire.FileChange
	due     time.Time            // when to report; zero while it is empty
	last    map[string]int       // index of a path's last change
	moved   map[uint32]movedFrom // by cookie: renames without their second event
}

// movedFrom is the first event of a rename. It counts as a removal until the second one
// arrives.
type movedFrom struct {
	index int // of the change
	isDir bool
	at    time.Time
}

func (b *batch) add(c wire.FileChange) {
	path := string(c.Path)
	if at, ok := b.last[path]; ok && c.Kind == wire.ChangeWrite && b.changes[at].Kind == wire.ChangeWrite {
		return
	}
	if len(b.changes) == 0 {
		b.due = time.Now().Add(batchInterval)
		b.last, b.moved = map[string]int{}, map[uint32]movedFrom{}
	}
	b.last[path] = len(b.changes)
	b.changes = append(b.changes, c)
}

// moveFrom adds the first event of a rename.
func (b *batch) moveFrom(c wire.FileChange, cookie uint32, isDir bool) {
	b.add(c)
	b.moved[cookie] = movedFrom{index: len(b.changes) - 1, isDir: isDir, at: time.Now()}
}

// moveTo joins the second event of a rename with its first one, and returns the old
// path.
func (b *batch) moveTo(path string, cookie uint32) (from string, ok bool) {
	m, ok := b.moved[cookie]
	if !ok {
		return "", false
	}
	delete(b.moved, cookie)
	c := &b.changes[m.index]
	from = string(c.Path)
	c.Kind, c.From, c.Path = wire.ChangeRename, c.Path, []byte(path)
	b.last[path] = m.index
	return from, true
}

// ready reports whether the batch is to be reported. It waits longer if the second
// event of a recent rename may still arrive.
func (b *batch) ready(now time.Time) bool {
	if len(b.changes) == 0 || len(b.changes) < maxBatch && now.Before(b.due) {
		return false
	}
	for _, m := range b.moved {
		if due := m.at.Add(batchInterval); len(b.changes) < maxBatch && now.Before(due) {
			b.due = due
			return false
		}
	}
	return true
}

// flush empties the batch. away are directories that were renamed to a path that is
// not watched.
func (b *batch) flush() (changes []wire.FileChange, away []string) {
	for _, m := range b.moved {
		if m.isDir {
			away = append(away, string(b.changes[m.index].Path))
		}
	}
	changes = b.changes
	*b = batch{}
	return changes, away
}
