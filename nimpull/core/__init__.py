"""The pure core: values in, values out. No os, socket, time, logging, requests or open() here."""
