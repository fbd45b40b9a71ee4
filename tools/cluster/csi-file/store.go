package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// A thing (volume or snapshot) is a directory ID with the files `disk` and `about.json`. It is made under another name
// and renamed, so that it is there as a whole or not at all; an id is made of the name that the caller gave, so that a
// repeated call finds what the first one made.
type about struct {
	Name    string    // as the caller named it
	Size    int64     // bytes
	Source  string    // of a snapshot: the volume; of a volume: the snapshot or volume it was filled from
	Created time.Time // of a snapshot: the point in time
	Ready   time.Time // of a snapshot: usable from then on
}

type store struct{ root string }

type kind string

const (
	volumes   kind = "volumes"
	snapshots kind = "snapshots"
)

func openStore(root string) (*store, error) {
	if root == "" {
		return nil, errors.New("-root is missing")
	}
	s := &store{root: root}
	for _, k := range []kind{volumes, snapshots} {
		if err := os.MkdirAll(filepath.Join(root, string(k)), 0o750); err != nil {
			return nil, err
		}
		entries, err := os.ReadDir(filepath.Join(root, string(k)))
		if err != nil {
			return nil, err
		}
		for _, entry := range entries { // Half made, or half removed, when we were killed.
			if filepath.Ext(entry.Name()) == ".part" {
				if err := os.RemoveAll(filepath.Join(root, string(k), entry.Name())); err != nil {
					return nil, err
				}
			}
		}
	}
	return s, nil
}

func (s *store) id(k kind, name string) string {
	sum := sha256.Sum256([]byte(name))
	return string(k)[:4] + "-" + hex.EncodeToString(sum[:10])
}

func (s *store) disk(k kind, id string) string { return filepath.Join(s.root, string(k), id, "disk") }

// find answers nil when there is no such thing.
func (s *store) find(k kind, id string) (*about, error) {
	if id == "" || id != filepath.Base(id) { // Not one of ours.
		return nil, nil
	}
	text, err := os.ReadFile(filepath.Join(s.root, string(k), id, "about.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	found := &about{}
	return found, json.Unmarshal(text, found)
}

func (s *store) list(k kind) (ids []string, err error) {
	entries, err := os.ReadDir(filepath.Join(s.root, string(k)))
	for _, entry := range entries {
		if filepath.Ext(entry.Name()) != ".part" {
			ids = append(ids, entry.Name())
		}
	}
	return ids, err
}

// create makes a thing of the given size whose first bytes are those of the file `from`, shared and not copied; with ""
// it is all zeros.
func (s *store) create(k kind, id string, it about, from string) error {
	final := filepath.Join(s.root, string(k), id)
	part := final + ".part"
	if err := os.RemoveAll(part); err != nil {
		return err
	}
	if err := os.Mkdir(part, 0o750); err != nil {
		return err
	}
	if err := fill(filepath.Join(part, "disk"), it.Size, from); err != nil {
		return errors.Join(err, os.RemoveAll(part))
	}
	text, err := json.Marshal(it)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(part, "about.json"), text, 0o640); err != nil {
		return err
	}
	return os.Rename(part, final)
}

func fill(path string, size int64, from string) error {
	disk, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o640)
	if err != nil {
		return err
	}
	defer disk.Close()
	if from != "" {
		source, err := os.Open(from)
		if err != nil {
			return err
		}
		defer source.Close()
		// Atomic: the kernel holds the source's lock, so no write is in the clone by half.
		if err := unix.IoctlFileClone(int(disk.Fd()), int(source.Fd())); err != nil {
			return fmt.Errorf("sharing the blocks of %s: %w", from, err)
		}
	}
	return disk.Truncate(size)
}

// remove is complete when it answers nil, and may be repeated.
func (s *store) remove(k kind, id string) error {
	if id == "" || id != filepath.Base(id) {
		return nil
	}
	final := filepath.Join(s.root, string(k), id)
	err := os.Rename(final, final+".part")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.RemoveAll(final + ".part")
}

func (s *store) free() (int64, error) {
	var stat unix.Statfs_t
	err := unix.Statfs(s.root, &stat)
	return int64(stat.Bavail) * stat.Bsize, err
}
