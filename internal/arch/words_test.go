package arch

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// avoided matches the words in bold of GLOSSARY.md: vague actors, and words that only
// this project would use. It finds them in prose and within identifiers.
var avoided = regexp.MustCompile(`(?i:nobody|somebody|anybody|everybody|whoever|whatever|\bamid\b|patience|recast|rousing|\brouse|warmth|settle)` +
	`|[a-z0-9](Amid|Rouse)|(\bamid|Amid)[A-Z]`)

// mayName are the files that must contain these words.
var mayName = []string{"GLOSSARY.md", "STYLE.md", "internal/arch/words_test.go"}

// wired matches lines with a word that cannot change: in the agent's protocol, which
// agents of earlier versions in sleeping VMs use, and in names of Unix users.
var wired = regexp.MustCompile(`"recast|recast_failed|nobody:x:`)

func TestWordsOfTheGlossary(t *testing.T) {
	for _, text := range []string{"killPatience", "whoever", "TestSleepAmidAWake", "amidBoot", "vm.Rouse", "SleepAmid"} {
		if !avoided.MatchString(text) {
			t.Errorf("the pattern does not find %q", text)
		}
	}
	if text := "timeout; a pyramid; Pyramids; carousel"; avoided.MatchString(text) {
		t.Errorf("the pattern finds a word in %q", text)
	}
	walk(t, func(file, below string) error {
		if slices.Contains(mayName, below) {
			return nil
		}
		text, err := readProse(file)
		if err != nil {
			return err
		}
		for i, line := range strings.Split(text, "\n") {
			if word := avoided.FindString(line); word != "" && !wired.MatchString(line) {
				t.Errorf("%s:%d: %q is a word to avoid; GLOSSARY.md has the one to use: %s", below, i+1, word, strings.TrimSpace(line))
			}
		}
		return nil
	})
}

// readProse returns the text of a file that developers write, "" for other files:
// sources by their extension, scripts by their first line, and the Makefile.
func readProse(file string) (string, error) {
	extensions := []string{".go", ".md", ".txtar", ".yaml", ".yml", ".sh", ".sql", ".html", ".css", ".c"}
	bare := filepath.Ext(file) == ""
	if !bare && !slices.Contains(extensions, filepath.Ext(file)) {
		return "", nil
	}
	info, err := os.Stat(file)
	if err != nil || !info.Mode().IsRegular() || info.Size() > maxProse {
		return "", err
	}
	text, err := os.ReadFile(file)
	if err != nil || bare && filepath.Base(file) != "Makefile" && !strings.HasPrefix(string(text), "#!") {
		return "", err
	}
	return string(text), nil
}

const maxProse = 1 << 20 // bytes; larger files are binaries and archives
