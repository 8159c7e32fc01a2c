// Package status draws a Snapshot for people: as an HTML page, as plain text and as JSON. All three
// show the same. It remembers nothing, and draws what package history does.
package status
