package files

import (
	"time"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

// batch gathers changes to report them together: of several writes to a file
// with nothing in between it keeps one, and it joins the two halves of a rename.
type batch struct {
	changes []wire.FileChange
	due     time.Time         // zero while it is empty
	last    map[string]int    // the last change of a path
	left    map[uint32]moving // by cookie: files that have left, and may arrive
}

// moving is the first half of a rename.
type moving struct {
	index int // of what it is as long as the other half is missing: a removal
	isDir bool
	at    time.Time
}

func (b *batch) add(c wire.FileChange) {
	path := string(c.Path)
	if at, ok := b.last[path]; ok && c.Kind == wire.ChangeWrite && b.changes[at].Kind == wire.ChangeWrite {
		return
	}
	if len(b.changes) == 0 {
		b.due = time.Now().Add(gather)
		b.last, b.left = map[string]int{}, map[uint32]moving{}
	}
	b.last[path] = len(b.changes)
	b.changes = append(b.changes, c)
}

// leave adds a file that has left its place.
func (b *batch) leave(c wire.FileChange, cookie uint32, isDir bool) {
	b.add(c)
	b.left[cookie] = moving{index: len(b.changes) - 1, isDir: isDir, at: time.Now()}
}

// arrive makes a rename of what has left, and returns its old path.
func (b *batch) arrive(path string, cookie uint32) (from string, ok bool) {
	m, ok := b.left[cookie]
	if !ok {
		return "", false
	}
	delete(b.left, cookie)
	c := &b.changes[m.index]
	from = string(c.Path)
	c.Kind, c.From, c.Path = wire.ChangeRename, c.Path, []byte(path)
	b.last[path] = m.index
	return from, true
}

// ready reports whether it is time to report. What has left a moment ago is
// given another one to arrive.
func (b *batch) ready(now time.Time) bool {
	if len(b.changes) == 0 || len(b.changes) < maxBatch && now.Before(b.due) {
		return false
	}
	for _, m := range b.left {
		if again := m.at.Add(gather); len(b.changes) < maxBatch && now.Before(again) {
			b.due = again
			return false
		}
	}
	return true
}

// take empties the batch. away are directories that have left for elsewhere.
func (b *batch) take() (changes []wire.FileChange, away []string) {
	for _, m := range b.left {
		if m.isDir {
			away = append(away, string(b.changes[m.index].Path))
		}
	}
	changes = b.changes
	*b = batch{}
	return changes, away
}
