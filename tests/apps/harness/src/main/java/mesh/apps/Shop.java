package mesh.apps;

import java.util.Map;

/** The service that every framework's provider serves and every consumer calls. */
public interface Shop {
    /** The label of the provider that answered. */
    String who();

    /** As {@link #who()}; another method, so that a route on method can tell them apart. */
    String audit();

    String echo(String text);

    /** The order with its state changed. */
    Order place(Order order);

    /** Fails always, with the code in the exception. */
    void reject(String code) throws OrderException;

    /** Fails always, with an unchecked exception. */
    String crash(String message);

    /** Null, whatever is asked. */
    String nothing(String ignored);

    /** The bytes in reverse order. */
    byte[] reverse(byte[] data);

    /** Counts a notice; consumers call it one-way. */
    void notice(String id);

    /** How many notices of this id arrived. */
    int notices(String id);

    /** Answers with the provider's label after this many milliseconds. */
    String slow(int millis);

    /** The attachments or headers that arrived, those whose name starts with {@code x-}; the answer carries some, too. */
    Map<String, String> headers();
}
