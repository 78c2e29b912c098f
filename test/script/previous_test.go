package script

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	_ "modernc.org/sqlite" // the database of the data directory
)

// previousCommand is about the data directory in testdata/previous, which an
// earlier hatchd has written:
//
//	previous unpack                    (to HATCH_DATA_DIR; ci.key and webhook.secret go here)
//	previous same LIST FILE [FIELD...]  (FILE has all of LIST.json, but for these fields)
func previousCommand(ts *testscript.TestScript, neg bool, args []string) {
	const usage = "usage: previous unpack | previous same LIST FILE [FIELD...]"
	switch {
	case neg && (len(args) == 0 || args[0] != "same"), len(args) == 0:
		ts.Fatalf(usage)
	case args[0] == "unpack" && len(args) == 1:
		dir := ts.Getenv("HATCH_DATA_DIR")
		ts.Check(unpackPrevious(dir))
		ts.Check(moveImage(dir))
		for _, name := range []string{"ci.key", "webhook.secret"} {
			text, err := os.ReadFile(filepath.Join(previousDir, name))
			ts.Check(err)
			ts.Check(os.WriteFile(ts.MkAbs(name), text, 0o600))
		}
	case args[0] == "same" && len(args) >= 3:
		want, err := os.ReadFile(filepath.Join(previousDir, args[1]+".json"))
		ts.Check(err)
		if err := compareLists(want, []byte(ts.ReadFile(args[2])), args[3:]); (err != nil) != neg {
			ts.Fatalf("%s: %v", args[1], err)
		}
	default:
		ts.Fatalf(usage)
	}
}

const previousDir = "testdata/previous"

// unpackPrevious unpacks the archive, which holds a directory data, as dir.
func unpackPrevious(dir string) error {
	f, err := os.Open(filepath.Join(previousDir, "data.tar.gz"))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	plain, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	archive := tar.NewReader(plain)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := filepath.Join(dir, strings.TrimPrefix(header.Name, "data/"))
		if header.Typeflag == tar.TypeDir {
			err = os.MkdirAll(name, header.FileInfo().Mode())
		} else {
			err = errors.Join(writeSparse(name, header.FileInfo().Mode(), archive), os.Chtimes(name, header.ModTime, header.ModTime))
		}
		if err != nil {
			return err
		}
	}
}

// writeSparse writes a file with holes where the content is zeros.
func writeSparse(name string, mode os.FileMode, content io.Reader) (err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	block := make([]byte, 64<<10)
	for at := int64(0); ; {
		n, err := io.ReadFull(content, block)
		if data := block[:n]; len(bytes.TrimRight(data, "\x00")) > 0 {
			if _, err := f.WriteAt(data, at); err != nil {
				return err
			}
		}
		at += int64(n)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return f.Truncate(at)
		case err != nil:
			return err
		}
	}
}

// moveImage puts the new paths and inodes of the image's files into all rows
// that name them, as if the directory had always been here.
func moveImage(dir string) error {
	list, err := os.ReadFile(filepath.Join(dir, "files"))
	if err != nil {
		return err
	}
	changes := []string{}
	for line := range strings.Lines(string(list)) {
		var path string
		var inode uint64
		if _, err := fmt.Sscan(line, &path, &inode); err != nil {
			return err
		}
		st, err := os.Stat(filepath.Join(dir, "fake", filepath.Base(path)))
		if err != nil {
			return err
		}
		changes = append(changes, filepath.Dir(path), filepath.Join(dir, "fake"),
			fmt.Sprintf(`"inode":%d}`, inode), fmt.Sprintf(`"inode":%d}`, st.Sys().(*syscall.Stat_t).Ino))
	}
	db, err := sql.Open("sqlite", filepath.Join(dir, "hatch.db"))
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	columns, err := textColumns(db)
	if err != nil {
		return err
	}
	for _, c := range columns {
		for pair := range slices.Chunk(changes, 2) {
			if _, err := db.Exec(fmt.Sprintf("UPDATE %s SET %s = replace(%s, ?, ?)", c[0], c[1], c[1]), pair[0], pair[1]); err != nil {
				return err
			}
		}
	}
	return nil
}

// textColumns returns the tables and columns whose rows name files.
func textColumns(db *sql.DB) (columns [][2]string, err error) {
	rows, err := db.Query(`SELECT t.name, c.name FROM sqlite_schema t, pragma_table_info(t.name) c
		WHERE t.type = 'table' AND t.name IN ('images', 'vms', 'snapshots') AND c.type = 'TEXT'`)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var c [2]string
		if err := rows.Scan(&c[0], &c[1]); err != nil {
			return nil, err
		}
		columns = append(columns, c)
	}
	return columns, rows.Err()
}

// compareLists returns an error for each field in which an object of want differs
// in got. New objects and fields of got do not count, nor do ignored fields.
func compareLists(want, got []byte, ignored []string) error {
	wanted, err := objects(want)
	if err != nil {
		return err
	}
	found, err := objects(got)
	if err != nil {
		return err
	}
	var differences []error
	for id, fields := range wanted {
		for name, value := range fields {
			if now := found[id][name]; !slices.Contains(ignored, name) && !reflect.DeepEqual(now, value) && !sameTime(now, value) {
				differences = append(differences, fmt.Errorf("%s: %s was %v and is %v", id, name, value, now))
			}
		}
	}
	return errors.Join(differences...)
}

// sameTime reports whether two values are one time, which may have more digits now.
func sameTime(a, b any) bool {
	var times [2]time.Time
	for i, value := range []any{a, b} {
		text, _ := value.(string)
		at, err := time.Parse(time.RFC3339, text)
		if err != nil {
			return false
		}
		times[i] = at
	}
	return times[0].Equal(times[1])
}

// objects returns the objects of a list by id.
func objects(list []byte) (map[string]map[string]any, error) {
	var all []map[string]any
	if err := json.Unmarshal(list, &all); err != nil {
		return nil, err
	}
	byID := map[string]map[string]any{}
	for _, object := range all {
		byID[fmt.Sprint(object["id"])] = object
	}
	if len(byID) == 0 {
		return nil, errors.New("there are no objects in the list")
	}
	return byID, nil
}
