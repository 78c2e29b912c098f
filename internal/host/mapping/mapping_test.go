//go:build linux

package mapping

import (
	"reflect"
	"strings"
	"testing"
)

const table = `55d0c0a00000-55d0c0b00000 r--p 00000000 08:01 131 /usr/bin/vmm
7f0000400000-7f0000600000 rw-p 00200000 00:01 77                         /memfd:base (deleted)
7f0000000000-7f0000100000 rw-p 00100000 00:01 77                         /memfd:base (deleted)
7f0000200000-7f0000300000 r--p 00000000 00:01 77                         /memfd:base (deleted)
7f0000800000-7f0000900000 rw-s 00000000 00:01 77                         /memfd:base (deleted)
7f0000900000-7f0000a00000 rw-p 00000000 00:01 78                         /memfd:base2 (deleted)
7f0000a00000-7f0000b00000 rw-p 00000000 00:00 0
7f0000b00000-7f0000c00000 rw-p 00000000 08:01 79                         /memfd:base (deleted) (deleted)
`

func TestPartsAreFoundByNameAndPrivacy(t *testing.T) {
	got, err := parseMaps(strings.NewReader(table), Link("base"))
	if err != nil {
		t.Fatal(err)
	}
	want := []part{
		{0x7f0000200000, 0x7f0000300000, 0},
		{0x7f0000000000, 0x7f0000100000, 0x100000},
		{0x7f0000400000, 0x7f0000600000, 0x200000},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
	if err := checkWhole(got, 4<<20); err != nil {
		t.Error(err)
	}
}

func TestAFileIsMappedWholeAndOnce(t *testing.T) {
	whole := []part{{begin: 0x10000, end: 0x20000, offset: 0}, {begin: 0x30000, end: 0x40000, offset: 0x10000}}
	for name, c := range map[string]struct {
		parts []part
		size  int64
	}{
		"a part is missing at the end":   {whole[:1], 0x20000},
		"a part is missing at the begin": {whole[1:], 0x20000},
		"a part is there twice":          {append([]part{whole[0]}, whole...), 0x20000},
		"it is larger":                   {whole, 0x18000},
		"it is smaller":                  {whole, 0x28000},
	} {
		if err := checkWhole(c.parts, c.size); err == nil {
			t.Errorf("%s: accepted as whole", name)
		}
	}
	if err := checkWhole(whole, 0x20000); err != nil {
		t.Error(err)
	}
}

func TestChunksCoverEachPartOnce(t *testing.T) {
	m := Mapping{size: 5 << 19, parts: []part{
		{begin: 0x10000000, end: 0x10000000 + 3<<18, offset: 0},
		{begin: 0x20000000, end: 0x20000000 + 7<<18, offset: 3 << 18},
	}}
	at := int64(0)
	for _, s := range m.chunks() {
		if s.offset != at || s.length <= 0 || s.offset/chunkSize != (s.offset+int64(s.length)-1)/chunkSize {
			t.Errorf("%+v after %d", s, at)
		}
		at += int64(s.length)
	}
	if at != m.size {
		t.Errorf("they cover %d of %d bytes", at, m.size)
	}
}

func FuzzParseMaps(f *testing.F) {
	f.Add(table, int64(4<<20))
	f.Add("0-ffffffffffffffff rw-p 0 00:01 1 /memfd:base (deleted)\n", int64(1<<20))
	f.Add("1000-2000 rw-p -1000 00:01 1 /memfd:base (deleted)\n", int64(4096))
	f.Fuzz(func(t *testing.T, table string, size int64) {
		parts, err := parseMaps(strings.NewReader(table), Link("base"))
		if err != nil || size <= 0 || checkWhole(parts, size) != nil {
			return
		}
		sum := uint64(0)
		for _, p := range parts {
			sum += p.end - p.begin
		}
		if sum != uint64(size) {
			t.Errorf("%d of %d bytes are accepted as whole", sum, size)
		}
	})
}

func TestAPageIsTheProcesssOwnWhenItIsNotTheFiles(t *testing.T) {
	for name, c := range map[string]struct {
		entry uint64
		want  bool
	}{
		"never touched":          {0, false},
		"read":                   {pagePresent | pageIsFiles, false},
		"the file's and swapped": {pageSwapped | pageIsFiles, false},
		"changed":                {pagePresent | 4711, true},
		"changed and swapped":    {pageSwapped | 4711, true},
	} {
		if got := isOwn(c.entry); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
