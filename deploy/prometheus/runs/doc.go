// Package runs has records of real connections as an exporter showed them, and the program that makes them.
package runs
