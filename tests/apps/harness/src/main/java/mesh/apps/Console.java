package mesh.apps;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;

/**
 * The application's line protocol on stdin and stdout. Everything else that prints to stdout (frameworks do) goes to stderr
 * instead. When stdin ends the application ends, so that none outlives the test that started it.
 */
public final class Console {
    private final PrintStream out = System.out;
    private final BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));

    public Console() {
        System.setOut(System.err);
        Thread main = Thread.currentThread();
        Thread.setDefaultUncaughtExceptionHandler((thread, failure) -> {
            failure.printStackTrace();
            if (thread == main) {
                // A framework's threads would keep a half-started application alive.
                Runtime.getRuntime().halt(1);
            }
        });
    }

    /** Prints one line; line ends within it are escaped. */
    public synchronized void print(String line) {
        out.println(line.replace("\r", "").replace("\n", "\\n"));
        out.flush();
    }

    /** The next command; null when stdin has ended. */
    public String read() {
        try {
            return in.readLine();
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }

    /** Serves a provider: READY, then waits for {@code quit} (orderly end) or the end of stdin (at once). */
    public void provide() {
        print("READY");
        for (String line = read(); line != null; line = read()) {
            if (line.equals("quit")) {
                System.exit(0);
            }
            print("unknown command: " + line);
        }
        Runtime.getRuntime().halt(0);
    }
}
